"""Files that are either complete or absent."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write a file so that neither a crash nor a full disk can leave a damaged one.

    The content goes to a temporary file beside it, is flushed to the disk and takes the name in one step. On failure
    the temporary file is removed and an older file of that name stays as it was.

    Args:
        path: The file; its folder is created.
        content: Whole content; text is encoded as UTF-8.

    Raises:
        OSError: The file cannot be written. For a full disk the message has needed and free bytes.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        _write_and_flush(temporary, data)
        os.replace(temporary, path)
    except OSError as error:
        # The free space is that of the moment of failure.
        message = _explain(error, path, len(data))
        with suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, message, str(path)) from error
    _flush_folder(path.parent)


def _write_and_flush(path: Path, data: bytes) -> None:
    with open(path, 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the new name itself survive a power failure; some network file systems cannot."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, path: Path, num_bytes: int) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f'{error.strerror}; nothing was changed'
    if error.errno == errno.EFBIG:
        return (
            f'{error.strerror}: {num_bytes:,} bytes are needed, more than the file system or the limit of the process '
            '(ulimit -f) allows. Older files are intact'
        )
    free = shutil.disk_usage(path.parent).free
    return (
        f'{error.strerror}: {num_bytes:,} bytes are needed and {free:,} are free in {path.parent}. Older files are '
        'intact. Free some space, or keep fewer checkpoints (max_keep_ckpts)'
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
