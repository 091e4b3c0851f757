#!/usr/bin/env bash
# Train in several processes of this machine, or of NNODES machines: one for each GPU, or simply GPUS processes
# where there is none.
#   bash tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT, the same command on each.
# Processes and machines have RENDEZVOUS_TIMEOUT seconds (300) to arrive; then the others end and name them.
# SIGUSR1, SIGTERM and Ctrl-C save a checkpoint and end. Processes that do not end by themselves within
# SHUTDOWN_TIMEOUT seconds after a Ctrl-C or the failure of another one are killed.
# When a process ends early, the others end within LOST_PROCESS_TIMEOUT seconds (20), and one of them says which. With
# MAX_RESTARTS=3 all then start again, up to three times, and go on from the last checkpoint.
set -euo pipefail

if [ $# -lt 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: bash $0 CONFIG GPUS [arguments of train.py]" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NNODES=${NNODES:-1}
export RENDEZVOUS_TIMEOUT=${RENDEZVOUS_TIMEOUT:-300}
PYTHON=${PYTHON:-python}

CORES=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((CORES > GPUS ? CORES / GPUS : 1))}
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"

if [ "$NNODES" -eq 1 ] && [ -z "${PORT:-}" ]; then
    # Port 0 lets the system choose a free one; the name of the machine may not resolve.
    RENDEZVOUS=(--rdzv-backend=c10d --rdzv-endpoint=localhost:0 --local-addr=127.0.0.1 --rdzv-id="$$-$RANDOM")
elif [ "$NNODES" -eq 1 ]; then
    # Fails at once where the port is taken.
    RENDEZVOUS=(--master-addr=127.0.0.1 --master-port="$PORT")
else
    RENDEZVOUS=(--node-rank="${NODE_RANK:?set NODE_RANK}" --master-addr="${MASTER_ADDR:?set MASTER_ADDR}"
        --master-port="${PORT:-29500}" --rdzv-conf="timeout=$RENDEZVOUS_TIMEOUT")
    echo "Node $NODE_RANK of $NNODES waits up to $RENDEZVOUS_TIMEOUT s for the others at $MASTER_ADDR:${PORT:-29500}" >&2
fi

"$PYTHON" "$TOOLS/torchrun.py" --nnodes="$NNODES" --nproc-per-node="$GPUS" "${RENDEZVOUS[@]}" \
    --max-restarts="${MAX_RESTARTS:-0}" --shutdown-timeout="${SHUTDOWN_TIMEOUT:-90}" \
    "$TOOLS/train.py" "$CONFIG" --launcher pytorch "${@:3}" &
AGENT=$!
RECEIVED=0

# The processes themselves get the signal: the agent would not wait for them, nor pass on their exit code.
forward() {
    RECEIVED=$(kill -l "$1")
    for worker in $(cat "/proc/$AGENT/task/$AGENT/children" 2>/dev/null || ps -o pid= --ppid "$AGENT"); do
        kill "-$1" "$worker" 2>/dev/null || true
    done
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM
trap 'forward INT' INT

# A trapped signal interrupts `wait`.
while true; do
    STATUS=0
    wait "$AGENT" || STATUS=$?
    kill -0 "$AGENT" 2>/dev/null || break
done
# The agent reports every exit code as 1; train.py leaves with 128 + signal after SIGTERM and Ctrl-C.
[ "$STATUS" -eq 0 ] || [ "$RECEIVED" -eq 0 ] || STATUS=$((128 + RECEIVED))
exit "$STATUS"
