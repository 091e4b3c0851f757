#!/usr/bin/env bash
# Checks style and runs the tests, in an environment that it makes first.
#
# Usage: bash tools/test.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
