"""Large read-only arrays: stored in files that are mapped into memory, and shared with worker processes."""

import json
import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mm_sop.utils.files import open_atomically, open_regular

FORMAT = 'mm_sop arrays 1'
# A longer first line belongs to a file of another kind, without line breaks.
_MAX_HEADER = 2**26
_ALIGNMENT = 64


class ArrayFileError(ValueError):
    """A file of arrays is incomplete."""


class SharedArray(np.ndarray):
    """A read-only array of which worker processes receive no copy.

    Forked processes share its memory anyway. Processes that are started by other methods (``'spawn'``,
    ``'forkserver'``) map the file from which it was opened, or an anonymous one. Otherwise, it is pickled like any
    other array.
    """

    source: tuple[BinaryIO, int] | None = None
    """File and position of the first byte."""

    @classmethod
    def wrap(cls, array: np.ndarray, source: tuple[BinaryIO, int] | None = None) -> 'SharedArray':
        """View of an array, which must not change any more."""
        if isinstance(array, cls) and source is None:
            return array
        shared = np.ascontiguousarray(array).view(cls)
        shared.flags.writeable = False
        shared.source = source
        return shared

    def __reduce_ex__(self, protocol: Any) -> tuple:
        if get_spawning_popen() is None:
            return self.view(np.ndarray).__reduce_ex__(protocol)  # type: ignore[return-value]
        if self.source is None:
            file = _open_anonymous()
            file.write(self.view(np.ndarray).data)
            file.flush()
            self.source = file, 0
        file, start = self.source
        return _map_inherited, (DupFd(file.fileno()), self.dtype.str, self.size, start)

    def __deepcopy__(self, memo: dict | None, /) -> 'SharedArray':
        return self


def _open_anonymous() -> BinaryIO:
    """Open a file without a name: in memory where the system has such files, else on the disk."""
    if hasattr(os, 'memfd_create'):
        return os.fdopen(os.memfd_create('mm_sop'), 'w+b')
    return tempfile.TemporaryFile()  # type: ignore[return-value]  # its type is that of the wrapper on Windows


def _map_inherited(descriptor: Any, dtype: str, count: int, start: int) -> SharedArray:
    with os.fdopen(descriptor.detach(), 'rb') as file:
        return _map(file, dtype, count, start, _map_file(file))


def _map_file(file: BinaryIO) -> mmap.mmap | bytes:
    # Empty files cannot be mapped.
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b''


def _map(file: BinaryIO, dtype: str, count: int, start: int, content: mmap.mmap | bytes) -> SharedArray:
    # A process inherits each descriptor once, so that every array needs its own.
    own = os.fdopen(os.dup(file.fileno()), 'rb')
    return SharedArray.wrap(np.frombuffer(content, dtype, count, start), (own, start))


def save_arrays(path: str | Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write one-dimensional arrays and a JSON-serializable header to a file for :func:`open_arrays`.

    The file is complete when it appears. Its first line is the header; the arrays follow, little-endian and aligned.
    """
    arrays = {name: array.astype(array.dtype.newbyteorder('<'), copy=False) for name, array in arrays.items()}
    layout = {name: [array.dtype.str, array.size] for name, array in arrays.items()}
    line = json.dumps(dict(format=FORMAT, **header, arrays=layout)).encode()
    line = line.ljust(_aligned(len(line) + 1) - 1) + b'\n'
    with open_atomically(path, len(line) + sum(_aligned(array.nbytes) for array in arrays.values())) as file:
        file.write(line)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).view(np.ndarray).data)
            file.write(bytes(_aligned(array.nbytes) - array.nbytes))


def open_arrays(path: str | Path) -> tuple[dict[str, Any], dict[str, SharedArray]]:
    """Map the arrays of a file into memory; nothing is read before it is used.

    Returns:
        Header, and arrays by name.

    Raises:
        FileNotFoundError: There is no file.
        ArrayFileError: The file is shorter or longer than its header says.
        ValueError: It was not written by :func:`save_arrays`.
    """
    with open_regular(path) as file:
        header = read_header(file)
        if header is None or header.pop('format', None) != FORMAT:
            raise ValueError(f'{path} does not begin with the header of {FORMAT}')
        content, start, arrays = _map_file(file), file.tell(), {}
        layout = header.pop('arrays')
        sizes = {name: np.dtype(dtype).itemsize * count for name, (dtype, count) in layout.items()}
        expected = start + sum(map(_aligned, sizes.values()))
        if len(content) != expected:
            raise ArrayFileError(f'{path} has {len(content):,} bytes, expected {expected:,}')
        for name, (dtype, count) in layout.items():
            arrays[name] = _map(file, dtype, count, start, content)
            start += _aligned(sizes[name])
        return header, arrays


def read_header(file: BinaryIO) -> dict[str, Any] | None:
    """Read the JSON object in the first line of a file; None if there is none."""
    line = file.readline(_MAX_HEADER)
    try:
        header = json.loads(line) if line.endswith((b'}\n', b' \n')) else None
    except ValueError:
        return None
    return header if isinstance(header, dict) else None


def _aligned(num_bytes: int) -> int:
    return math.ceil(num_bytes / _ALIGNMENT) * _ALIGNMENT
