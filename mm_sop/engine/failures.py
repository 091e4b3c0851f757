"""Failures that users can mend are one clear message; all others keep their traceback."""

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

# What users can do about an error of the file system, where the error itself does not say it.
_REMEDIES = {
    errno.ENOSPC: 'free some space, or choose a folder on another disk; what was complete is intact',
    errno.EDQUOT: 'free some space, or choose a folder on another disk; what was complete is intact',
    errno.EFBIG: 'raise the limit of the file size (ulimit -f) or of the file system',
    errno.EROFS: 'choose a folder that can be written to',
    errno.EACCES: 'check the permissions, or choose another folder',
    errno.EPERM: 'check the permissions, or choose another folder',
    errno.ENOENT: 'check the path',
    errno.ENOTDIR: 'check the path: a part of it is a file',
    errno.EISDIR: 'check the path: it is a folder',
    errno.ENAMETOOLONG: 'choose a shorter name',
    errno.EMFILE: 'raise the limit of open files (ulimit -n), or set num_workers=0',
    errno.EIO: 'check the disk',
    errno.ESTALE: 'the network file system has lost the file: start again',
}

_SHARED_MEMORY = (
    'the worker processes have too little shared memory for their batches ({size}): set num_workers=0 (train.py: '
    '--cfg-options train_dataloader.num_workers=0), or give the container more (docker run --shm-size=8g or --ipc=host)'
)
_KILLED_WORKER = (
    'a worker process was killed, most likely because the memory of the machine was used up: set a lower num_workers '
    'or batch size'
)
_MEMORY = (
    'there is too little memory for this batch size: lower it (train.py: train_dataloader.batch_size), or use --amp'
)

_SYMPTOMS = (
    (r'Too many open files', f'too many open files: {_REMEDIES[errno.EMFILE]}'),
    (r'</torch_|out of shared memory|killed by signal: Bus error', _SHARED_MEMORY),
    (r'DataLoader worker \(pid.* (killed by signal: Killed|exited unexpectedly)', _KILLED_WORKER),
    (r"DefaultCPUAllocator: (can't allocate|not enough) memory", _MEMORY),
)


class LaunchError(ValueError):
    """The run cannot begin; the message says what to change."""


@contextmanager
def report_failures(program: str, *expected: type[Exception]) -> Iterator[None]:
    """End a program with a message for what users can mend, without a traceback.

    Besides the expected errors these are a full or read-only disk, missing permissions, a limit of the file size, too
    little memory or shared memory, and Ctrl-C. Can be used as a decorator.

    Args:
        program: Its name, which begins the message.
        *expected: Errors whose message says all.
    """
    # A full disk would print a traceback for every line of the log; it ends the run at the next file anyway.
    logging.raiseExceptions = False
    try:
        yield
    except KeyboardInterrupt:
        print(f'{program}: interrupted', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = describe_failure(error, (LaunchError, *expected))
        if message is None:
            raise
        sys.exit(f'{program}: {message}')
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def describe_failure(error: Exception, expected: tuple[type[Exception], ...] = ()) -> str | None:
    """Say in words what users can mend.

    Args:
        error: The error. Worker processes of a DataLoader hand on theirs as text.
        expected: Errors whose message says all.

    Returns:
        The message, or None for what may be a fault of the program.
    """
    name, text = _unwrap(error)
    # The signal that has killed a worker may stand in the cause.
    history = f'{text}\n{error.__cause__}'
    for pattern, message in _SYMPTOMS:
        if isinstance(error, RuntimeError) and re.search(pattern, history):
            return message.format(size=_shared_memory())
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f'{text.splitlines()[0]}: {_MEMORY}' if text else _MEMORY
    described = _describe_file_error(error) if isinstance(error, OSError) else None
    if described is None and (isinstance(error, expected) or name in {kind.__name__ for kind in expected}):
        return text
    return described


def _unwrap(error: Exception) -> tuple[str, str]:
    """Class and message of an error, without what PyTorch adds to those of worker processes."""
    text = str(error)
    caught = re.match(r'Caught (\w+) in DataLoader worker', text)
    if not caught:
        return type(error).__name__, text
    found = re.search(rf'^(?:\w+\.)*{caught[1]}: (.*)', text, re.MULTILINE | re.DOTALL)
    return caught[1], (found[1] if found else text).strip()


def _describe_file_error(error: OSError) -> str | None:
    """Path, reason and remedy; None for errors of connections and processes."""
    number = error.errno
    if number is None:
        listed = re.search(r'\[Errno (\d+)\]', str(error))
        number = listed and int(listed[1])
    if number not in _REMEDIES:
        return None
    if error.errno is None:
        return f'{_unwrap(error)[1]}; {_REMEDIES[number]}'
    place = f'{os.fsdecode(error.filename)}: ' if isinstance(error.filename, str | bytes) else ''
    known = error.strerror == os.strerror(number)
    return f'{place}{error.strerror}{f"; {_REMEDIES[number]}" if known else ""}'


def _shared_memory() -> str:
    """Size of the shared memory and what is free, in MiB."""
    try:
        found = os.statvfs('/dev/shm')
    except OSError:
        return 'no /dev/shm'
    total, free = (found.f_frsize * blocks / 2**20 for blocks in (found.f_blocks, found.f_bavail))
    return f'/dev/shm: {total:,.0f} MiB, {free:,.0f} MiB free now'
