"""Processes that end with their launcher."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import print_log

_POLL_SECONDS = 1.0

GRACE_SECONDS = 60.0
"""Time for a last checkpoint."""


@contextmanager
def ends_with_launcher(launcher: str) -> Iterator[None]:
    """End this process within seconds after the process that started it has died without a signal to it.

    It gets a SIGTERM first: a run saves a checkpoint if all its processes still answer. What has not ended after
    :data:`GRACE_SECONDS` is ended at once. The death of a grandparent does not count, such as that of a shell whose
    terminal was closed.

    Args:
        launcher: As for :func:`launch`; ``'none'`` is watched by nobody.
    """
    parent, finished = os.getppid(), threading.Event()
    if launcher == 'none':
        yield
        return
    threading.Thread(target=_watch, args=(parent, finished), daemon=True, name='launcher watch').start()
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
