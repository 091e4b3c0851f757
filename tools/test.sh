#!/usr/bin/env bash
# Checks the code and runs the tests, in an environment that it creates first.
#
# Usage: bash tools/test.sh [arguments of pytest]
# Without arguments all tests run, one process per core, and the examples in the docstrings.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup.sh test
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .
codespell
python tools/dev/check_language.py
lint-imports --cache-dir .cache/import_linter
mypy
NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet --site-dir .cache/site
if [ $# -eq 0 ]; then
  python -m pytest --doctest-modules --doctest-ignore-import-errors mm_sop
  set -- --numprocesses=auto --maxprocesses=8 --dist=loadfile
fi
exec python -m pytest "$@"
