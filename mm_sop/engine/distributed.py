"""Connects the processes of a run, within a few minutes or with an explanation."""

import atexit
import os
import socket
import subprocess
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from mmengine.dist import init_dist
from mmengine.logging import print_log

from mm_sop.engine.peers import peer_timeout, watch_peers
from mm_sop.engine.restarts import restart_count
from mm_sop.utils.failures import LaunchError

RANK_VARIABLES = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
)
"""Environment variables in which a launcher passes rank, number of processes and rank on the machine."""

_REPORT_SECONDS = 30.0
_POLL_SECONDS = 0.2


def is_first_process(launcher: str) -> bool:
    """Whether this process is the main one of its run; works before the processes are connected.

    Raises:
        LaunchError: This process was not started by that launcher.
    """
    if launcher == 'none':
        return True
    variable = RANK_VARIABLES[launcher][0]
    if variable not in os.environ:
        raise LaunchError(
            f'--launcher {launcher}: {variable} is not set, so this process was not started by it. Use '
            'tools/dist_train.sh, torchrun, tools/slurm_train.sh or mpirun, or leave out --launcher'
        )
    return int(os.environ[variable]) == 0


def connect_processes(launcher: str, dist_cfg: dict | None = None) -> None:
    """Initialize ``torch.distributed``, also without CUDA, which MMEngine's ``init_dist`` requires.

    All processes have to arrive within a few minutes, see :func:`meet`. Does nothing if they are connected already, or
    for the launcher ``'none'``. They are disconnected when the program ends, whichever script it is. ``dist_cfg`` is
    ``env_cfg.dist_cfg`` of the config; the backend defaults to NCCL with CUDA and to gloo without. When a process ends
    early, the others end within ``lost_process_timeout`` seconds (20, or the variable ``LOST_PROCESS_TIMEOUT``), see
    :func:`watch_peers`.

    Raises:
        LaunchError: The config asks for NCCL, which needs CUDA, or a process has not arrived.
    """
    has_cuda = torch.cuda.is_available()
    options = dict(dist_cfg or {})
    lost_timeout = peer_timeout(options.pop('lost_process_timeout', None))
    if launcher != 'none' and not has_cuda and options.get('backend', 'gloo') != 'gloo':
        raise LaunchError(
            f'env_cfg.dist_cfg.backend={options["backend"]!r} needs a CUDA device, and none is available: leave it '
            'out, or add --cfg-options env_cfg.dist_cfg.backend=gloo'
        )
    # MMEngine's runner starts DeepSpeed and the like.
    if launcher == 'none' or dist.is_initialized() or options.get('init_backend', 'torch') != 'torch':
        return
    if launcher == 'slurm' and 'port' in options:
        os.environ['MASTER_PORT'] = str(options['port'])
    _export_rank(launcher)
    store, rank, world_size = meet()
    # Without the keys of an earlier attempt.
    store = dist.PrefixStore(f'attempt{restart_count()}', store)
    watch_peers(store, rank, world_size, lost_timeout)
    # Nobody would notice a process that has ended between its arrival and here.
    _wait_for_all('watched', store, _Deadline(rank, world_size))
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    # The timeout of the collectives, which is longer than that of the rendezvous.
    timeout = options.setdefault('timeout', 1800)
    store.set_timeout(timedelta(seconds=timeout))
    store = dist.PrefixStore('default_pg', store)
    if has_cuda:
        init_dist(launcher, store=store, rank=rank, world_size=world_size, **options)
    else:
        lasting = timedelta(seconds=timeout)
        dist.init_process_group('gloo', timeout=lasting, store=store, rank=rank, world_size=world_size)


def _export_rank(launcher: str) -> None:
    """Translate a launcher's variables into those of torch.distributed."""
    for name, source in zip(RANK_VARIABLES['pytorch'], RANK_VARIABLES[launcher], strict=True):
        os.environ[name] = os.environ[source]
    # Jobs may share a machine.
    os.environ.setdefault('MASTER_PORT', str(20000 + int(os.environ.get('SLURM_JOB_ID') or 9500) % 10000))
    if 'MASTER_ADDR' not in os.environ:
        host, nodes = '127.0.0.1', os.environ.get('SLURM_NODELIST')
        if nodes:
            host = subprocess.check_output(['scontrol', 'show', 'hostname', nodes], text=True).split()[0]
        os.environ['MASTER_ADDR'] = host


def rendezvous_timeout() -> float:
    """Seconds that all processes have to arrive: ``RENDEZVOUS_TIMEOUT``, or 300."""
    text = os.environ.get('RENDEZVOUS_TIMEOUT') or '300'
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise LaunchError(f'RENDEZVOUS_TIMEOUT={text}: expected seconds')
    return seconds


def meet() -> tuple[dist.Store, int, int]:
    """Wait until all processes have arrived, and report the progress twice a minute.

    The meeting point is given by the variables of torch.distributed: ``MASTER_ADDR``, ``MASTER_PORT``, ``RANK`` and
    ``WORLD_SIZE``. Returns store, rank and number of processes for ``init_process_group``.

    Raises:
        LaunchError: Some processes have not arrived in time; the message names them.
    """
    rank, world_size = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    deadline = _Deadline(rank, world_size)
    store = _connect(deadline)
    _wait_for_all('arrivals', store, deadline)
    return store, rank, world_size


def _wait_for_all(name: str, store: dist.Store, deadline: '_Deadline') -> None:
    """Announce that this process has arrived somewhere, and wait for the others."""
    # A restarted group of torchrun meets at the same store.
    arrivals = dist.PrefixStore(f'{name}/{restart_count()}', store)
    arrivals.set(f'rank{deadline.rank}', socket.gethostname())
    arrived = arrivals.add('count', 1)
    try:
        while arrived < deadline.world_size:
            deadline.check(arrived, arrivals)
            time.sleep(_POLL_SECONDS)
            arrived = arrivals.add('count', 0)
    except dist.DistNetworkError as error:
        raise LaunchError(
            f'rank {deadline.rank}: the process that served {deadline.place} has ended: see its output'
        ) from error


class _Deadline:
    """Reports the progress of a rendezvous while there is time, and raises after it."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.place = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
        self.limit, self.started, self.reported = rendezvous_timeout(), time.monotonic(), 0.0

    def check(self, arrived: int = 0, arrivals: dist.Store | None = None) -> None:
        elapsed = time.monotonic() - self.started
        if elapsed < min(self.limit, self.reported + _REPORT_SECONDS):
            return
        state = f'{self.place} cannot be reached'
        if arrivals is not None:
            missing = [str(rank) for rank in range(self.world_size) if not arrivals.check([f'rank{rank}'])]
            ranks = ', '.join(missing[:20]) + (', ...' if len(missing) > 20 else '')
            state = f'{arrived} of {self.world_size} processes have arrived at {self.place}, missing: rank {ranks}'
        if elapsed >= self.limit:
            raise LaunchError(
                f'rank {self.rank} has waited {elapsed:.0f} s for the other processes: {state}. Look at their output '
                'for the reason, check that MASTER_ADDR and MASTER_PORT are the same and open for all, or set '
                'RENDEZVOUS_TIMEOUT (seconds) if they need longer to start'
            )
        self.reported = elapsed
        if self.rank == 0 or arrivals is None:
            print_log(f'Rank {self.rank} has waited for {elapsed:.0f} s: {state}', 'current')


def _connect(deadline: _Deadline) -> dist.Store:
    """Open the store: rank 0 serves it, unless torchrun does."""
    host, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    serves = deadline.rank == 0 and os.environ.get('TORCHELASTIC_USE_AGENT_STORE') != 'True'
    while True:
        left = deadline.started + deadline.limit - time.monotonic()
        timeout, size = timedelta(seconds=max(1.0, min(_REPORT_SECONDS, left))), deadline.world_size
        try:
            return dist.TCPStore(host, port, size, serves, timeout, wait_for_workers=False, multi_tenant=True)
        except dist.DistNetworkError as error:
            if serves:
                raise LaunchError(f'rank 0 cannot listen on {deadline.place}: {error}') from error
            deadline.check()
