#!/usr/bin/env bash
# Creates the Python environment of this checkout in .venv; returns at once if it is up to date.
#
# Usage: bash tools/setup.sh [quickstart|test]
#   quickstart   dependencies of pretraining and evaluation (default)
#   test         everything: MMCV with compiled operators for detection, tests, static checks, documentation
#
# PYTHON selects the interpreter (3.10 to 3.13), MM_SOP_CACHE the folder that caches the compiled MMCV.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch_version=2.13.0
level=${1:-quickstart}
state=.venv/.mm_sop_setup
log=.cache/setup.log
python=.venv/bin/python

case $level in
  quickstart | test) ;;
  *) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

find_python() {
  local candidate version without_venv=
  local candidates=(python3 python3.12 python3.11 python3.13 python3.10)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case $version in 3.10 | 3.11 | 3.12 | 3.13) ;; *) continue ;; esac
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      echo "$candidate"
      return
    fi
    without_venv=${without_venv:-$version}
  done
  if [ -n "$without_venv" ]; then
    echo "Python $without_venv has no venv module: sudo apt-get install python$without_venv-venv" >&2
  else
    echo "No Python 3.10 to 3.13 found (${PYTHON:-python3}): install one or name it, PYTHON=/path/to/python3.11" >&2
  fi
  exit 1
}

# What the environment depends on. A moved checkout needs a new one, as scripts and links contain its path.
fingerprint() {
  local tag
  tag=$("$python" -c 'import sys; print(sys.version_info[:3])' 2>/dev/null) || return 0
  echo "$PWD $tag torch-$torch_version" "$(cat pyproject.toml setup.py tools/setup.sh | sha256sum | cut -c 1-16)"
}

heartbeat=
trap '[ -z "$heartbeat" ] || kill "$heartbeat" 2>/dev/null || true' EXIT
trap 'printf "\nInterrupted: the next run starts over\n" >&2; exit 130' INT TERM

# step NAME COMMAND...: run a command with its output in the log; print a dot every 10 s and the time at the end.
step() {
  local name=$1 start=$SECONDS status=0
  shift
  printf '  %-42s' "$name"
  { while sleep 10 >/dev/null 2>&1; do printf .; done; } 9>&- &
  heartbeat=$!
  ("$@") >>"$log" 2>&1 || status=$?
  kill "$heartbeat"
  wait "$heartbeat" 2>/dev/null || true
  heartbeat=
  if [ "$status" -ne 0 ]; then
    printf ' failed\n\n' && tail -n 30 "$log" >&2
    echo "Setting up failed at \"$name\"; the complete output is in $log" >&2
    fail
  fi
  printf ' %d s\n' $((SECONDS - start))
}

# An error leaves the packages unchanged, so only an interruption requires a new environment.
fail() {
  echo "$former" >"$state"
  exit 1
}

pip() { "$python" -m pip install --no-compile "$@"; }

check() {
  local modules='mm_sop, mmengine.runner, torch.distributed.run'
  [ "$level" = quickstart ] || modules+=', mmcv._ext, mmdet.models, mmdet.datasets'
  # Bash ignores `set -e` here, because the caller checks the status.
  "$python" -m pip check && "$python" -W ignore -c "import $modules"
}

mkdir -p .cache
exec 9>.cache/setup.lock
flock -n 9 || { echo 'Another set-up is running in this checkout; waiting for it'; flock 9; }

former=$(cat "$state" 2>/dev/null || true)
current=$(fingerprint)
case $former in
  "$level $current" | "test $current") exit 0 ;;
  test\ *) level=test ;;
esac

echo "Setting up $PWD/.venv for \"$level\" (output in $log)"
: >"$log"
if [ -z "$current" ] || [ "$former" = incomplete ] || [[ -n $former && $former != *" $PWD "* ]]; then
  interpreter=$(find_python)
  rm -rf .venv
  mkdir .venv
  echo incomplete >"$state"
  former=incomplete
  step "environment with $("$interpreter" --version)" "$interpreter" -m venv .venv
  step pip pip --upgrade pip
fi
echo incomplete >"$state"

# torch first: the resolver keeps an installed torch and selects a matching torchvision.
step "torch $torch_version" pip "torch==$torch_version" 'setuptools>=77' wheel click ninja
if [ "$level" = test ]; then
  echo '  MMCV with compiled operators (1 to 4 minutes if no wheel is cached)'
  wheel=$("$python" -W ignore tools/build_mmcv.py) || fail
  step "$(basename "$wheel" | cut -d - -f 1,2)" pip --no-deps --force-reinstall "$wheel"
  step 'MM-SOP, its dependencies and test tools' pip --no-build-isolation -e '.[test]'
else
  # Built without torch, MMCV lacks its operators. pip must not cache that wheel: it would install it later where
  # the operators are needed.
  mmcv=$(sed -n 's/.*"\(onedl-mmcv==[^"]*\)".*/\1/p' pyproject.toml)
  step "MMCV without operators" pip --no-cache-dir --no-deps "$mmcv"
  step 'MM-SOP and its dependencies' pip --no-build-isolation -e .
fi
step 'check' check
echo "$level $(fingerprint)" >"$state"
