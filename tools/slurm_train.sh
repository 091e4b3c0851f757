#!/usr/bin/env bash
# Train under SLURM, one task for each GPU.
#   bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG GPUS [arguments of train.py]
# GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS may be set. With SRUN_ARGS="--signal=USR1@300" the run saves a checkpoint
# five minutes before its time limit and ends with code 0; submit the same command with --resume to go on.
set -euo pipefail

if [ $# -lt 4 ] || ! [[ $4 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: bash $0 PARTITION JOB_NAME CONFIG GPUS [arguments of train.py]" >&2
    exit 2
fi
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
GPUS=$4
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
read -r -a EXTRA <<<"${SRUN_ARGS:-}"

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec srun --partition="$PARTITION" --job-name="$JOB_NAME" --gres="gpu:$GPUS_PER_NODE" --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="${CPUS_PER_TASK:-8}" --kill-on-bad-exit=1 \
    ${EXTRA[@]+"${EXTRA[@]}"} \
    "${PYTHON:-python}" -u "$TOOLS/train.py" "$CONFIG" --launcher slurm "${@:5}"
