"""Files and folders that are either complete or absent."""

import errno
import fcntl
import io
import math
import os
import platform
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Names of temporary files tell on which machine their writer runs.
_HOST = f'{zlib.crc32(platform.node().encode()):08x}'
_TEMPORARY = re.compile(r'\..+\.([0-9a-f]{8})-[0-9a-f]{8}\.tmp')
_SECONDS_UNTIL_OLD = 24 * 3600


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write a file so that neither a crash nor a full disk can leave a damaged one; see :func:`open_atomically`.

    Args:
        path: The file; its folder is created.
        content: Whole content; text is encoded as UTF-8, undecodable bytes of file names as they were.

    Raises:
        OSError: The file cannot be written. For a full disk the message has needed and free bytes.
    """
    data = content.encode(errors='surrogateescape') if isinstance(content, str) else content
    with open_atomically(path, len(data)) as file:
        file.write(data)


def write_array_atomically(
    path: str | Path, shape: tuple[int, ...], dtype: np.dtype | type, blocks: Iterable[np.ndarray]
) -> None:
    """Write a large ``.npy`` file block by block; see :func:`open_atomically`.

    On a full disk, writing to a memory-mapped file ends the process with SIGBUS. This function raises instead.

    Args:
        path: The file; its folder is created.
        shape: Shape (N, ...) of the array.
        dtype: Its type.
        blocks: Consecutive rows, (n, ...), N in total.

    Raises:
        OSError: The file cannot be written. For a full disk the message has needed and free bytes.
        ValueError: The blocks do not add up to the shape.
    """
    dtype, header = np.dtype(dtype), io.BytesIO()
    layout = dict(descr=np.lib.format.dtype_to_descr(dtype), fortran_order=False, shape=tuple(shape))
    np.lib.format.write_array_header_1_0(header, layout)
    num_bytes = header.tell() + math.prod(shape) * dtype.itemsize
    with open_atomically(path, num_bytes) as file:
        file.write(header.getvalue())
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype))
        if file.tell() != num_bytes:
            raise ValueError(f'{path}: the blocks have {file.tell():,} bytes, an array of {shape} has {num_bytes:,}')


@contextmanager
def open_atomically(path: str | Path, num_bytes: int = 0) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name at the end of the block, when it is complete and on the disk.

    The content goes to a temporary file beside it. On failure the temporary file is removed and an older file of that
    name stays as it was. What killed processes have left in the folder is removed before the first writing.

    Args:
        path: The file; its folder is created.
        num_bytes: Space that is allocated before the block starts, so that a full disk is detected at once.

    Yields:
        The file, opened in binary mode.

    Raises:
        OSError: The file cannot be written. For a full disk the message has needed and free bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(path.parent.absolute())
    try:
        with _write_beside(path, num_bytes) as file:
            yield file
    except OSError as error:
        raise OSError(error.errno, _explain(error, path, num_bytes), str(path)) from error
    _flush_folder(path.parent)


@contextmanager
def _write_beside(path: Path, num_bytes: int) -> Iterator[BinaryIO]:
    temporary, descriptor = _make_locked(path, is_folder=False)
    try:
        # The lock is held until the file has its name.
        with open(descriptor, 'wb') as file:
            _allocate(descriptor, num_bytes)
            yield file
            file.truncate()
            file.flush()
            os.fsync(descriptor)
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def make_folder_atomically(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Make a folder that gets its name at the end of the block, when it is complete; it is removed on failure.

    Args:
        path: The folder; its parents are created.
        replace: Whether it takes the place of an older one.

    Yields:
        A temporary folder beside it, to be filled.

    Raises:
        OSError: The folder cannot be written, or there is an older one that must not be replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(path.parent.absolute())
    temporary, descriptor = _make_locked(path, is_folder=True)
    older = temporary.with_name(f'.older{temporary.name}')
    try:
        yield temporary
        if replace and path.exists():
            os.replace(path, older)
        try:
            os.replace(temporary, path)
        except OSError:
            with suppress(FileNotFoundError):
                os.replace(older, path)
            raise
    finally:
        os.close(descriptor)
        for leftover in (temporary, older):
            shutil.rmtree(leftover, ignore_errors=True)


def remove_stale_temporaries(folder: str | Path) -> None:
    """Remove temporary files and folders of this module whose writers were killed; subfolders are not searched.

    A writer holds a lock on its file, which the system releases when the process ends in any way. Files of other
    machines, and those on file systems without locks, are only removed when they have not changed for a day.

    Args:
        folder: Where to look; may be missing.
    """
    removed = 0
    with suppress(OSError):
        for path in sorted(Path(folder).iterdir()):
            match = _TEMPORARY.fullmatch(path.name)
            if match:
                with suppress(OSError):
                    removed += _remove_if_stale(path, is_foreign=match[1] != _HOST)
    if removed:
        print_log(f'Removed {removed} temporary files that killed processes have left in {folder}', 'current')


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
        # Still locked: a writer that has just made it waits, and sees that it is gone.
        shutil.rmtree(path) if is_folder else path.unlink()
        return True
    finally:
        os.close(descriptor)


def _make_locked(path: Path, is_folder: bool) -> tuple[Path, int]:
    """Make a temporary file or folder beside a path, locked against :func:`remove_stale_temporaries`."""
    while True:
        temporary = path.with_name(f'.{path.name}.{_HOST}-{secrets.token_hex(4)}.tmp')
        if is_folder:
            temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, descriptor
        # Removed between the making and the locking.
        os.close(descriptor)


def _allocate(descriptor: int, num_bytes: int) -> None:
    """Take the space for a file; where the file system cannot do that, the writing itself finds the disk full."""
    if num_bytes and hasattr(os, 'posix_fallocate'):
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
        except OSError as error:
            if error.errno in _FULL:
                raise


def _flush_folder(folder: Path) -> None:
    """Make the new name itself survive a power failure; some network file systems cannot."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
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


@register_backend('atomic')
class AtomicBackend(LocalBackend):
    """Local files, written by :func:`write_atomically`; ``backend_args=dict(backend='atomic')``."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes.

        Args:
            obj: Content.
            filepath: Where to write.
        """
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text.

        Args:
            obj: Content.
            filepath: Where to write.
            encoding: Encoding of the text.
        """
        write_atomically(filepath, obj.encode(encoding))
