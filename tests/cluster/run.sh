#!/usr/bin/env bash
# Run the tests of tools/slurm_train.sh on a Slurm cluster of this machine: two nodes without GPUs on loopback, as any
# user, without systemd or cgroups.
#   bash tests/cluster/run.sh [arguments of pytest]
# Needs Debian's packages slurm-wlm and munge, whose own services need not run. Everything lies in a temporary folder
# and is gone at the end.
set -euo pipefail
PATH=$PATH:/usr/sbin
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || { echo "$0: no $program: apt-get install slurm-wlm munge" >&2; exit 1; }
done

FOLDER=$(mktemp -d)
DAEMONS=()
finish() {
    scancel --quiet --user="$(id -un)" 2>/dev/null || true
    # The daemons of the nodes end after the processes of their jobs.
    for ((i = 0; i < 60; i++)); do [ -n "$(squeue --noheader 2>/dev/null)" ] && sleep 1 || break; done
    for ((i = ${#DAEMONS[@]} - 1; i >= 0; i--)); do
        kill "${DAEMONS[i]}" 2>/dev/null || true
        wait "${DAEMONS[i]}" || true
    done
    rm -rf "$FOLDER"
}
trap finish EXIT
trap 'exit 130' INT TERM

start() {
    "$@" >>"$FOLDER/$1.out" 2>&1 &
    DAEMONS+=($!)
}

mkdir -m 711 "$FOLDER/munge"
chmod 711 "$FOLDER"
(umask 077 && head -c 1024 /dev/urandom >"$FOLDER/munge/key")
start munged --foreground --force --socket="$FOLDER/munge/socket" --key-file="$FOLDER/munge/key" \
    --pid-file="$FOLDER/munge/pid" --log-file="$FOLDER/munge/log" --seed-file="$FOLDER/munge/seed"

read -r -a PORTS < <("${PYTHON:-python}" -c '
import socket
servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(server.getsockname()[1] for server in servers))')

# A requeued job waits until its credential has expired: 120 s, unless cred_expire says otherwise.
cat >"$FOLDER/slurm.conf" <<EOF
ClusterName=loopback
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=${PORTS[0]}
AuthInfo=socket=$FOLDER/munge/socket,cred_expire=5
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool-%n
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd-%n.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
NodeName=node1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=${PORTS[1]} CPUs=1
NodeName=node2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=${PORTS[2]} CPUs=1
PartitionName=low Nodes=node[1-2] PriorityTier=1 GraceTime=120
PartitionName=high Nodes=node[1-2] PriorityTier=2 PreemptMode=OFF
EOF
export SLURM_CONF=$FOLDER/slurm.conf
start slurmctld -D
start slurmd -D -N node1
start slurmd -D -N node2
for ((i = 0; i < 60; i++)); do
    [ "$(sinfo --noheader --partition=low --states=idle --format=%D 2>/dev/null)" != 2 ] || break
    sleep 0.5
done
sinfo || { tail -n 20 "$FOLDER"/*.out "$FOLDER"/*.log >&2; exit 1; }

# The names of the nodes are known to this cluster only.
export MASTER_ADDR=127.0.0.1 MASTER_PORT=${PORTS[3]} OMP_NUM_THREADS=1
cd "$ROOT"
sbatch --version
"${PYTHON:-python}" -m pytest -p no:cacheprovider --verbose --durations=10 tests/cluster/slurm_runs.py "$@"
