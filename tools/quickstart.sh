#!/usr/bin/env bash
# From a fresh clone to a trained network and its report, on 2 CPU cores in about a quarter of an hour.
#
# Usage: bash tools/quickstart.sh [--fast] [--restart]
#   --fast      a single epoch: everything works as in the whole run, but little is learned
#   --restart   train from the beginning, whatever an earlier run has left
#
# After an interruption, run it again: it goes on from the last checkpoint.
set -euo pipefail
call="bash $0${*:+ $*}"
usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$script"; }
script=$(realpath "${BASH_SOURCE[0]}")
cd "$(dirname "$script")/.."

work_dir=work_dirs/quickstart
restart=false
options=()
for argument in "$@"; do
  case $argument in
    --fast) work_dir=work_dirs/quickstart-fast options=(--cfg-options train_cfg.max_epochs=1) ;;
    --restart) restart=true ;;
    -h | --help) usage; exit ;;
    *) usage >&2; echo "unknown argument: $argument" >&2; exit 2 ;;
  esac
done

training=
interrupt() {
  # The training saves a checkpoint. Started in the background, it does not get the terminal's Ctrl-C.
  [ -z "$training" ] || { kill -TERM "$training" && wait "$training"; } 2>/dev/null || true
  printf '\nInterrupted. To go on where it stopped: %s\n' "${call/ --restart/}" >&2
  exit 130
}
trap interrupt INT TERM

times=()
step() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  "$@" || { echo "$name failed, see above. To try again: $call" >&2; exit 1; }
  times+=("$name $((SECONDS - start)) s")
}

train() {
  local amp=()
  "$restart" && rm -rf "$work_dir"
  # Processors with bfloat16 instructions train faster with it, others much slower.
  grep -qwE 'avx512_bf16|amx_bf16|bf16' /proc/cpuinfo && amp=(--amp)
  # Containers often set PORT, and a cluster NNODES, for something else.
  unset PORT NNODES
  # One thread for each of the two processes; they run on the CPU whatever else there is.
  CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=1 PYTHON=.venv/bin/python \
    bash tools/dist_train.sh configs/sop/quickstart.py 2 --work-dir "$work_dir" --resume "${amp[@]}" "${options[@]}" &
  training=$!
  # Bash acts on a signal at once while it waits.
  wait "$training"
}

step Environment bash tools/setup.sh quickstart
step Images .venv/bin/python tools/prepare_data.py composites --out data/composites --only pretrain classes
step Training train

printf '\n' && cat "$work_dir/knn.md"
printf '\nTimes:'
printf ' %s;' "${times[@]}"
printf ' together %d min %d s\nReport: %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$PWD/$work_dir/report/index.html"
