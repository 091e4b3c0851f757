"""Opening of files that others have put into a folder, and showing of their names."""

import errno
import os
import stat
import unicodedata
from pathlib import Path
from typing import BinaryIO

from mmengine.fileio import LocalBackend, get_file_backend

# Absent where there are no FIFOs, on Windows.
_NONBLOCK = getattr(os, 'O_NONBLOCK', 0)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading if it is a regular one, or a link to one.

    Opening a FIFO would wait for a writer, and a device may never end.

    Raises:
        OSError: It is something else, or cannot be opened.
    """
    return open(path, 'rb', opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | _NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, 'Not a regular file', path)


def read_regular(path: str | Path, backend_args: dict | None = None) -> bytes:
    """Read a file, on the local disk only a regular one, see :func:`open_regular`.

    Args:
        path: Path, or address for another of MMEngine's file backends.
        backend_args: Arguments of the backend.
    """
    backend = get_file_backend(path, backend_args=backend_args, enable_singleton=True)
    if not isinstance(backend, LocalBackend):
        return backend.get(path)
    with open_regular(path) as file:
        return file.read()


def printable(text: str, keep_bytes: bool = False) -> str:
    """Escape all that could fool a terminal or break a line: control and invisible characters, undecodable bytes.

    Args:
        text: A file name, as Python has it, or a message with one.
        keep_bytes: Leave undecodable bytes as they are, for files that are written with ``errors='surrogateescape'``
            and read by programs.
    """
    return text if text.isprintable() else ''.join(_escape(character, keep_bytes) for character in text)


def _escape(character: str, keep_bytes: bool) -> str:
    # Other spaces than the common one are not printable, and belong to names in many scripts.
    if character.isprintable() or unicodedata.category(character) == 'Zs':
        return character
    if '\udc80' <= character <= '\udcff':
        return character if keep_bytes else f'\\x{ord(character) - 0xDC00:02x}'
    return character.encode('unicode_escape').decode()
