#!/usr/bin/env bash
# Train under Slurm, one task for each GPU.
#   bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG GPUS [arguments of train.py]
# GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS may be set; GRES=gpu:a100:8 asks for a kind of GPU, and GRES= for none, so
# that GPUS and GPUS_PER_NODE count processes.
#
# The command waits for the run. SRUN_ARGS="--signal=USR1@300" saves a checkpoint five minutes before the time limit and
# ends with code 0; submit the same command with --resume to go on.
#
# BATCH=1 submits the run and returns. SBATCH_ARGS="--time=24:00:00" holds further options of sbatch. Five minutes before
# its time limit, and when it is preempted, the job saves a checkpoint and goes back to the queue; once it starts again
# it resumes by itself. The output of all attempts is in one file. By hand:
#   scancel --batch --signal=USR1 JOB    save, and go back to the queue
#   scancel --signal=USR1 JOB            save, and end
set -euo pipefail

if [ $# -lt 4 ] || ! [[ $4 =~ ^[1-9][0-9]*$ ]] || ! [[ ${GPUS_PER_NODE:-1} =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: [BATCH=1] [GPUS_PER_NODE=8] bash $0 PARTITION JOB_NAME CONFIG GPUS [arguments of train.py]" >&2
    exit 2
fi
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
GPUS=$4
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
read -r -a SRUN_EXTRA <<<"${SRUN_ARGS:-}"
read -r -a SBATCH_EXTRA <<<"${SBATCH_ARGS:-}"

JOB=(--partition="$PARTITION" --job-name="$JOB_NAME" --ntasks="$GPUS" --ntasks-per-node="$GPUS_PER_NODE"
    --cpus-per-task="${CPUS_PER_TASK:-8}")
GRES=${GRES-gpu:$GPUS_PER_NODE}
[ -z "$GRES" ] || JOB+=(--gres="$GRES")
COMMAND=(srun "${JOB[@]}" --kill-on-bad-exit=1 ${SRUN_EXTRA[@]+"${SRUN_EXTRA[@]}"}
    "${PYTHON:-python}" -u "$TOOLS/train.py" "$CONFIG" --launcher slurm "${@:5}")

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
[ "${BATCH:-0}" != 0 ] || exec "${COMMAND[@]}"

{
    cat <<'EOF'
#!/usr/bin/env bash
STOPPED=
# Reaches the tasks of the job, not this script.
trap 'STOPPED=1; INTERRUPTED=1; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
EOF
    echo "$(printf '%q ' "${COMMAND[@]}") &"
    cat <<'EOF'
STEP=$!

# A trapped signal interrupts `wait`.
INTERRUPTED=1
while [ -n "$INTERRUPTED" ]; do
    INTERRUPTED=
    STATUS=0
    wait "$STEP" || STATUS=$?
done

# Slurm requeues a preempted job only if it is still alive at the end of the grace time. A canceled one does not run.
JOB=$(scontrol show job "$SLURM_JOB_ID")
if [[ $JOB == *JobState=RUNNING* ]] && [[ $STOPPED || $JOB =~ PreemptTime=[0-9] ]]; then
    echo "Job $SLURM_JOB_ID goes back to the queue; it resumes from its last checkpoint."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$STATUS"
EOF
} | sbatch "${JOB[@]}" --requeue --open-mode=append --signal=B:USR1@300 ${SBATCH_EXTRA[@]+"${SBATCH_EXTRA[@]}"}
