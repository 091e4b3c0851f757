#!/usr/bin/env bash
# What to run on the first day with a GPU: at most 8 minutes on one card. Writes docs/benchmarks/gpu_check.json and a page.
# --dry-run prints the steps and their time limits, also without a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec "${PYTHON:-python}" tools/benchmarks/gpu_check.py "$@"
