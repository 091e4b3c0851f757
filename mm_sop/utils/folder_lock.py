"""Locks a folder of results, which has one writer at a time."""

import errno
import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path

from mmengine.logging import print_log

from mm_sop.utils.failures import LaunchError

LOCK = '.lock'
"""File in the folder that names the writer. It is never removed; only the lock on it matters."""

_held: set[int] = set()


@contextmanager
def lock_folder(folder: str | Path, option: str = '--work-dir') -> Iterator[None]:
    """Keep other processes, on this and other machines, from writing into a folder.

    The kernel releases the lock when the process ends in any way. On a file system without locks a warning is logged.

    The folder is created. ``option`` is that of the program for another folder, for the message.

    Raises:
        LaunchError: Another process writes into the folder; the message names host and process.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    _at_fork(after_in_child=_close_locks)
    _held.add(descriptor)
    try:
        if _try_lock(descriptor, folder, option):
            os.ftruncate(descriptor, 0)
            started = datetime.now().astimezone().isoformat(timespec='seconds')
            owner = dict(host=socket.gethostname(), process=os.getpid(), started=started, command=sys.argv)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _try_lock(descriptor: int, folder: Path, option: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise LaunchError(
                f'{folder} is in use by {_describe_owner(descriptor)}. Two runs would overwrite each other: wait for '
                f'it to end or stop it, or choose another folder with {option}'
            ) from error
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK):
            raise
        print_log(
            f'The file system of {folder} has no locks ({error.strerror}): make sure that no other run writes there.',
            'current',
            logging.WARNING,
        )
        return False
    return True


def _describe_owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 2**16, 0))
        return f'process {owner["process"]} on {owner["host"]} (since {owner["started"]})'
    except (ValueError, KeyError, TypeError):
        return 'another process'


def _close_locks() -> None:
    """Close the inherited locks in forked processes, such as workers of a DataLoader, which may outlive the owner."""
    while _held:
        os.close(_held.pop())


# Registers a function once.
_at_fork = cache(os.register_at_fork)
