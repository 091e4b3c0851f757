"""Reports failures that users can fix in one clear message; all others keep their traceback."""

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What users can do about an error of the file system, where the error itself does not say so.
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

_MEMORY = (
    'there is too little memory for this batch size: lower it (train.py: train_dataloader.batch_size), or use --amp'
)
_SYMPTOMS = {
    'Too many open files': f'too many open files: {_REMEDIES[errno.EMFILE]}',
    '</torch_|out of shared memory|killed by signal: Bus error': (
        'the worker processes have too little shared memory for their batches ({size}): set num_workers=0 (train.py: '
        '--cfg-options train_dataloader.num_workers=0), or give the container more (docker run --shm-size=8g or '
        '--ipc=host)'
    ),
    r'DataLoader worker \(pid.* (killed by signal: Killed|exited unexpectedly)': (
        'a worker process was killed, most likely because the memory of the machine was used up: set a lower '
        'num_workers or batch size'
    ),
    "DefaultCPUAllocator: (can't allocate|not enough) memory": _MEMORY,
}


class UserError(Exception):
    """Base of all errors that users can fix; the message says how. Commands print it without a traceback."""


class LaunchError(UserError, ValueError):
    """The run cannot start; the message says what to change."""


@contextmanager
def report_failures(program: str, *expected: type[Exception]) -> Iterator[None]:
    """End a program with a message, without a traceback, after a failure that users can fix.

    Such failures are every :class:`UserError`, a full or read-only disk, missing permissions, a limit of the file size,
    too little memory or shared memory, and Ctrl-C. ``expected`` are further errors whose message says everything. Also
    works as a decorator.
    """
    # A full disk would print a traceback for every line of the log; it ends the run at the next file anyway.
    logging.raiseExceptions = False
    try:
        yield
    except KeyboardInterrupt:
        print(f'{program}: interrupted', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = describe_failure(error, expected)
        if message is None:
            raise
        sys.exit(f'{program}: {message}')


def describe_failure(error: Exception, expected: tuple[type[Exception], ...] = ()) -> str | None:
    """Return a message about a failure that users can fix, or None for what may be a bug.

    Args:
        error: The error. Worker processes of a DataLoader pass theirs on as text.
        expected: Errors besides :class:`UserError` whose message says everything.
    """
    name, text = _unwrap(error)
    # The signal that killed a worker may be named in the cause.
    history = f'{text}\n{error.__cause__}'
    for pattern, message in _SYMPTOMS.items():
        if isinstance(error, RuntimeError) and re.search(pattern, history):
            return message.format(size=_shared_memory())
    if isinstance(error, MemoryError) or name == 'OutOfMemoryError':
        return f'{text.splitlines()[0]}: {_MEMORY}' if text else _MEMORY
    described = _describe_file_error(error) if isinstance(error, OSError) else None
    kinds = (*expected, *_subclasses(UserError))
    # Of an error in a worker process only the name is known.
    if described is None and (isinstance(error, kinds) or name in {kind.__name__ for kind in kinds}):
        return text
    return described


def _subclasses(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _subclasses(each)


def _unwrap(error: Exception) -> tuple[str, str]:
    """Return class name and message of an error, without what PyTorch adds to those of worker processes."""
    text = str(error)
    caught = re.match(r'Caught (\w+) in DataLoader worker', text)
    if not caught:
        return type(error).__name__, text
    found = re.search(rf'^(?:\w+\.)*{caught[1]}: (.*)', text, re.MULTILINE | re.DOTALL)
    return caught[1], (found[1] if found else text).strip()


def _describe_file_error(error: OSError) -> str | None:
    """Format path, reason and remedy; None for errors of connections and processes."""
    number = error.errno
    if number is None:
        listed = re.search(r'\[Errno (\d+)\]', str(error))
        number = listed and int(listed[1])
    if number not in _REMEDIES:
        return None
    if error.errno is None:
        return f'{_unwrap(error)[1]}; {_REMEDIES[number]}'
    path = f'{os.fsdecode(error.filename)}: ' if isinstance(error.filename, str | bytes) else ''
    known = error.strerror == os.strerror(number)
    return f'{path}{error.strerror}{f"; {_REMEDIES[number]}" if known else ""}'


def _shared_memory() -> str:
    """Format the total and the free shared memory, in MiB."""
    try:
        found = os.statvfs('/dev/shm')
    except OSError:
        return 'no /dev/shm'
    total, free = (found.f_frsize * blocks / 2**20 for blocks in (found.f_blocks, found.f_bavail))
    return f'/dev/shm: {total:,.0f} MiB, {free:,.0f} MiB free now'
