"""Files: written completely or not at all, read only if they are regular, hashed, and named in messages."""

import errno
import fcntl
import hashlib
import io
import math
import os
import platform
import re
import secrets
import shutil
import stat
import time
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Names of temporary files tell on which machine their writer runs.
_HOST = f'{zlib.crc32(platform.node().encode()):08x}'
_TEMPORARY = re.compile(r'\..+\.([0-9a-f]{8})-[0-9a-f]{8}\.tmp')
_SECONDS_UNTIL_OLD = 24 * 3600
# Absent on Windows, where there are no FIFOs.
_NONBLOCK = getattr(os, 'O_NONBLOCK', 0)


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write a file completely or not at all, even after a crash or on a full disk; see :func:`open_atomically`.

    Text is encoded as UTF-8, undecodable bytes of file names as they were.
    """
    data = content.encode(errors='surrogateescape') if isinstance(content, str) else content
    with open_atomically(path, len(data)) as file:
        file.write(data)


def write_array_atomically(
    path: str | Path, shape: tuple[int, ...], dtype: np.dtype | type, blocks: Iterable[np.ndarray]
) -> None:
    """Write a large ``.npy`` file block by block; see :func:`open_atomically`.

    On a full disk, writing to a memory-mapped file ends the process with SIGBUS. This function raises instead.

    ``blocks`` are consecutive rows, (n, ...), of an array of the shape (N, ...).

    Raises:
        ValueError: The blocks do not add up to the shape.
    """
    dtype, header = np.dtype(dtype), io.BytesIO()
    layout = dict(descr=np.lib.format.dtype_to_descr(dtype), fortran_order=False, shape=tuple(shape))
    np.lib.format.write_array_header_1_0(header, layout)
    num_bytes = header.tell() + math.prod(shape) * dtype.itemsize
    with open_atomically(path, num_bytes) as file:
        file.write(header.getvalue())
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)
        if file.tell() != num_bytes:
            raise ValueError(f'{path}: the blocks have {file.tell():,} bytes, an array of {shape} has {num_bytes:,}')


@contextmanager
def open_atomically(path: str | Path, num_bytes: int = 0) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name at the end of the block, when it is complete and on the disk.

    The content goes to a temporary file beside it. On failure the temporary file is removed and an older file of that
    name is unchanged. Temporary files that killed processes left in the folder are removed before the first writing.

    The folder is created, and ``num_bytes`` are allocated before the block starts, so that a full disk is detected at
    once.

    Raises:
        OSError: The file cannot be written. For a full disk, the message states needed and free bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(path.parent.absolute())
    try:
        with _write_beside(path, num_bytes) as file:
            yield file
    except OSError as error:
        raise OSError(error.errno, _explain(error, path, num_bytes), str(path)) from error
    # The new name itself survives a power failure then; some network file systems do not support it.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _write_beside(path: Path, num_bytes: int) -> Iterator[BinaryIO]:
    temporary, descriptor = _make_locked(path, is_folder=False)
    try:
        # The lock is held until the file has its name.
        with os.fdopen(descriptor, 'wb') as file:
            if num_bytes and hasattr(os, 'posix_fallocate'):
                try:
                    os.posix_fallocate(descriptor, 0, num_bytes)
                except OSError as error:
                    # Where the file system cannot allocate, only the writing itself detects a full disk.
                    if error.errno in _FULL:
                        raise
            yield file
            file.truncate()
            file.flush()
            os.fsync(descriptor)
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def make_folder_atomically(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Create a folder that gets its name at the end of the block, when it is complete; it is removed on failure.

    Yields a temporary folder beside it, for the content. Parents are created.

    Raises:
        OSError: The folder cannot be written, or there is an older one and ``replace`` is False.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(path.parent.absolute())
    temporary, descriptor = _make_locked(path, is_folder=True)
    older = temporary.with_name(f'.older{temporary.name}')
    try:
        yield temporary
        if replace and path.exists():
            path.replace(older)
        try:
            temporary.replace(path)
        except OSError:
            with suppress(FileNotFoundError):
                older.replace(path)
            raise
    finally:
        os.close(descriptor)
        for leftover in (temporary, older):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def lock_beside(path: str | Path) -> Iterator[None]:
    """Let one process at a time into the block, for files that several may want to write; others wait.

    The lock is on an empty hidden file beside the path, whose folder is created. The system releases it when the
    process ends in any way; on file systems without locks, all processes go on at once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f'.{path.name.lstrip(".")}.lock'), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_stale_temporaries(folder: str | Path) -> None:
    """Remove temporary files and folders of this module whose writers were killed; subfolders are not searched.

    A writer holds a lock on its file, which the system releases when the process ends in any way. Files of other
    machines, and those on file systems without locks, are removed only if they have not changed for a day. The folder
    may be missing.
    """
    removed = 0
    with suppress(OSError):
        for path in sorted(Path(folder).iterdir()):
            match = _TEMPORARY.fullmatch(path.name)
            if match:
                with suppress(OSError):
                    removed += _remove_if_stale(path, is_foreign=match[1] != _HOST)
    if removed:
        from mmengine.logging import print_log

        print_log(f'Removed {removed} temporary files that killed processes left in {folder}', 'current')


_sweep_once = lru_cache(2**12)(remove_stale_temporaries)


def _remove_if_stale(path: Path, is_foreign: bool) -> bool:
    is_folder = path.is_dir()
    # Network file systems lock only what is open for writing, which folders cannot be.
    descriptor = os.open(path, os.O_NOFOLLOW | (os.O_RDONLY if is_folder else os.O_RDWR))
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            is_foreign = True
        changed = max(each.lstat().st_mtime for each in (path, *path.rglob('*')))
        if is_foreign and time.time() - changed < _SECONDS_UNTIL_OLD:
            return False
        # Still locked: a writer that has just created it waits for the lock, and then sees that it is gone.
        shutil.rmtree(path) if is_folder else path.unlink()
        return True
    finally:
        os.close(descriptor)


def _make_locked(path: Path, is_folder: bool) -> tuple[Path, int]:
    """Create a temporary file or folder beside a path, locked against :func:`remove_stale_temporaries`."""
    while True:
        temporary = path.with_name(f'.{path.name}.{_HOST}-{secrets.token_hex(4)}.tmp')
        if is_folder:
            temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, descriptor
        # Removed before it was locked.
        os.close(descriptor)


def _explain(error: OSError, path: Path, num_bytes: int) -> str:
    if error.errno not in _FULL:
        return f'{error.strerror}; nothing was changed'
    if error.errno == errno.EFBIG:
        return (
            f'{error.strerror}: {num_bytes:,} bytes are needed, more than the file system or the limit of the process '
            '(ulimit -f) allows. Older files are intact'
        )
    free = shutil.disk_usage(path.parent).free
    return (
        f'{error.strerror}: {num_bytes:,} bytes are needed and {free:,} are free in {path.parent}. Older files are '
        'intact. Free some space or write to another disk; training can keep fewer checkpoints (max_keep_ckpts)'
    )


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.

    Opening a FIFO would wait for a writer, and a device may never end. Both raise :class:`OSError` instead.
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
    """Read a file through MMEngine's file backends, on the local disk only a regular one; see :func:`open_regular`."""
    from mmengine.fileio import LocalBackend, get_file_backend

    backend = get_file_backend(path, backend_args=backend_args, enable_singleton=True)
    if not isinstance(backend, LocalBackend):
        return backend.get(path)
    with open_regular(path) as file:
        return file.read()


def hash_file(path: str | Path) -> str:
    """Compute the SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()


def printable(text: str, keep_bytes: bool = False) -> str:
    """Escape what could fool a terminal or break a line: control and invisible characters, undecodable bytes.

    ``keep_bytes`` leaves undecodable bytes as they are, for files that are written with ``errors='surrogateescape'``
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
