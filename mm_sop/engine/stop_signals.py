"""Signals that ask a run to save its state and leave."""

import os
import signal
import time
from types import FrameType

EXIT_CODES = {signal.SIGUSR1: 0, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 128 + signal.SIGINT}
"""SIGUSR1 is a cluster's warning that the job will be queued again: not a failure."""

# Launchers forward a signal that the terminal has already delivered to the whole process group.
_ECHO_SECONDS = 2.0


class StopSignals:
    """Remembers the first signal of :data:`EXIT_CODES`; a second one ends the process at once.

    Works in the main thread only; elsewhere :meth:`install` does nothing.
    """

    def __init__(self) -> None:
        self.received: int = 0
        self._time = 0.0
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Begin to listen."""
        self.received = 0
        try:
            self._previous = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        except ValueError:
            self._previous = {}

    def uninstall(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._time = int(number), now
        elif now - self._time > _ECHO_SECONDS:
            os._exit(128 + number)


def _reset_in_worker() -> None:
    """Let forked processes not inherit the handlers: a pool ends its workers by SIGTERM and waits for them."""
    if isinstance(getattr(signal.getsignal(signal.SIGTERM), '__self__', None), StopSignals):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


os.register_at_fork(after_in_child=_reset_in_worker)
