"""Counters in the state dict that the host reads without waiting for the device."""

from torch import Tensor


class HostInteger:
    """Copy on the host of an integer in a buffer.

    The device is asked, and waited for, only if something else has written to the buffer or replaced it, as loading a
    checkpoint does.
    """

    def __init__(self) -> None:
        self._value = 0
        self._seen: tuple[int, int] | None = None

    def read(self, buffer: Tensor) -> int:
        """Value of a buffer with one element."""
        if self._seen != _state_of(buffer):
            self._value, self._seen = int(buffer), _state_of(buffer)
        return self._value

    def write(self, buffer: Tensor, value: int) -> None:
        """Set the buffer and the copy."""
        buffer.fill_(value)
        self._value, self._seen = value, _state_of(buffer)


def _state_of(buffer: Tensor) -> tuple[int, int]:
    """Identity of a tensor and the number of its changes in place, for which PyTorch has no public name."""
    return id(buffer), buffer._version
