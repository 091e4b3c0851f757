"""Life of the processes of a run: who may write, when to stop, and what ends them."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import FrameType

from mmengine.logging import print_log

from mm_sop.engine.distributed import is_first_process
from mm_sop.engine.peers import explain_losses
from mm_sop.utils.files import remove_stale_temporaries
from mm_sop.utils.folder_lock import lock_folder

EXIT_CODES = {signal.SIGUSR1: 0, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 128 + signal.SIGINT}
"""Signals that ask a run to save its state and exit, and the exit codes. A cluster sends SIGUSR1 before it requeues the
job, which is not a failure."""

GRACE_SECONDS = 60.0
"""Time to save a last checkpoint after the launcher has died."""

_POLL_SECONDS = 1.0

# Launchers forward a signal that the terminal has already delivered to the whole process group.
_ECHO_SECONDS = 2.0

_guarded: set[Path] = set()


@contextmanager
def guard_run(work_dir: str | Path, launcher: str) -> Iterator[None]:
    """Keep other runs out of a work directory, and end this process with its launcher.

    The first process, which writes for all of them, locks the folder; see :func:`lock_folder` and
    :func:`ends_with_launcher`. The loss of another process is explained, see :func:`explain_losses`. Temporary files of
    killed runs are removed. A nested call for the same folder does nothing: :func:`launch` guards the folder before the
    runner exists, and the runner does so whatever script has started it.

    Raises:
        LaunchError: Another run writes there.
    """
    folder = Path(work_dir).resolve()
    if folder in _guarded:
        yield
        return
    with ends_with_launcher(launcher), lock_folder(work_dir) if is_first_process(launcher) else nullcontext():
        _guarded.add(folder)
        try:
            remove_stale_temporaries(work_dir)
            with explain_losses(work_dir):
                yield
        finally:
            _guarded.remove(folder)


@contextmanager
def ends_with_launcher(launcher: str) -> Iterator[None]:
    """End this process within seconds after its parent has died without signaling it.

    The process receives a SIGTERM first: a run saves a checkpoint if all its processes still answer. A process that is
    still alive after :data:`GRACE_SECONDS` exits at once. Only the parent is watched, not a grandparent such as a shell
    whose terminal was closed; nothing is watched for the launcher ``'none'``.
    """
    if launcher == 'none':
        yield
        return
    finished = threading.Event()
    threading.Thread(target=_watch, args=(os.getppid(), finished), daemon=True, name='launcher watch').start()
    try:
        yield
    finally:
        finished.set()


def _watch(parent: int, finished: threading.Event) -> None:
    # Not PR_SET_PDEATHSIG: it follows the thread of the parent that has forked, which may end earlier.
    while os.getppid() == parent:
        if finished.wait(_POLL_SECONDS):
            return
    print_log(f'The launcher (process {parent}) has died: this process ends as well.', 'current', logging.WARNING)
    os.kill(os.getpid(), signal.SIGTERM)
    if not finished.wait(GRACE_SECONDS):
        os._exit(128 + signal.SIGTERM)


class StopSignals:
    """Remembers the first signal of :data:`EXIT_CODES`; a second one ends the process at once.

    Works in the main thread only; in other threads :meth:`install` does nothing.
    """

    def __init__(self) -> None:
        self.received: int = 0
        self._time = 0.0
        self._previous: dict[signal.Signals, Callable | int | None] = {}

    def install(self) -> None:
        self.received = 0
        _at_fork(after_in_child=_reset_handlers)
        try:
            self._previous = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        except ValueError:
            self._previous = {}

    def uninstall(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._time = int(number), now
        elif now - self._time > _ECHO_SECONDS:
            os._exit(128 + number)


def _reset_handlers() -> None:
    """Reset the handlers in forked processes: a pool terminates its workers by SIGTERM and waits for them."""
    if isinstance(getattr(signal.getsignal(signal.SIGTERM), '__self__', None), StopSignals):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


# Registers a function once.
_at_fork = cache(os.register_at_fork)
