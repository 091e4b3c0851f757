#!/usr/bin/env bash
# Checks style and runs the tests, in an environment that it makes first.
#
# Usage: bash tools/test.sh [arguments of pytest]
# Without arguments all tests run, in one process for each core.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
[ $# -gt 0 ] || set -- --numprocesses=auto --maxprocesses=8 --dist=loadfile
exec .venv/bin/python -m pytest "$@"
