"""Where the processes of a run meet, within a few minutes or with an explanation."""

import os
import socket
import time
from datetime import timedelta

import torch.distributed as dist
from mmengine.logging import print_log

from mm_sop.engine.failures import LaunchError

_REPORT_SECONDS = 30.0
_POLL_SECONDS = 0.2


def rendezvous_timeout() -> float:
    """Seconds that all processes have to arrive: ``RENDEZVOUS_TIMEOUT``, or 300.

    Raises:
        LaunchError: The variable is no positive number.
    """
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

    The variables of torch.distributed say where: ``MASTER_ADDR``, ``MASTER_PORT``, ``RANK`` and ``WORLD_SIZE``. The
    timeout of collective operations, which is much longer, begins to count only after this.

    Returns:
        Store, rank and number of processes for ``init_process_group``.

    Raises:
        LaunchError: Some have not arrived in time; the message names them.
    """
    rank, world_size = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    deadline = _Deadline(rank, world_size)
    store = _connect(deadline)
    # A restarted group of torchrun meets at the same store.
    arrivals = dist.PrefixStore(f'arrivals/{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', store)
    arrivals.set(f'rank{rank}', socket.gethostname())
    arrived = arrivals.add('count', 1)
    try:
        while arrived < world_size:
            deadline.check(arrived, arrivals)
            time.sleep(_POLL_SECONDS)
            arrived = arrivals.add('count', 0)
    except dist.DistNetworkError as error:
        raise LaunchError(f'rank {rank}: the process that served {deadline.place} has ended: see its output') from error
    return store, rank, world_size


class _Deadline:
    """Reports while there is time, and raises after it."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.place = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
        self.limit, self.started, self.reported = rendezvous_timeout(), time.monotonic(), 0.0

    @property
    def left(self) -> float:
        return self.limit - (time.monotonic() - self.started)

    def check(self, arrived: int = 0, arrivals: dist.Store | None = None) -> None:
        elapsed = time.monotonic() - self.started
        if elapsed < min(self.limit, self.reported + _REPORT_SECONDS):
            return
        state = f'{self.place} cannot be reached'
        if arrivals is not None:
            missing = _missing(arrivals, self.world_size)
            state = f'{arrived} of {self.world_size} processes have arrived at {self.place}, missing: {missing}'
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
        timeout = timedelta(seconds=max(1.0, min(_REPORT_SECONDS, deadline.left)))
        try:
            return dist.TCPStore(
                host, port, deadline.world_size, serves, timeout, wait_for_workers=False, multi_tenant=True
            )
        except dist.DistNetworkError as error:
            if serves:
                raise LaunchError(f'rank 0 cannot listen on {deadline.place}: {error}') from error
            deadline.check()


def _missing(arrivals: dist.Store, world_size: int) -> str:
    missing = [rank for rank in range(world_size) if not arrivals.check([f'rank{rank}'])]
    listed = ', '.join(map(str, missing[:20]))
    return f'rank {listed}{", ..." if len(missing) > 20 else ""}'
