"""Notices that a process of the run has gone, and ends the others with an explanation."""

import atexit
import json
import os
import re
import secrets
import selectors
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch.distributed as dist
from mmengine.logging import print_log

from mm_sop.utils.failures import LaunchError, UserError

_BYE = b'bye\n'

# Until the watch knows why a collective has failed.
_EXPLAIN_SECONDS = 5.0

_watches: 'list[PeerWatch]' = []
_run_folders: list[Path] = []


class LostProcessError(UserError):
    """Another process of the run has ended before its work was done."""


def watch_peers(store: dist.Store, rank: int, world_size: int, timeout: float) -> None:
    """Watch the other processes until this one ends.

    Every process holds a connection to the first one. The kernel closes it when a process ends, however it does, and
    answers for a process that is only slow or stopped, which is therefore never taken for dead. Within half of
    ``timeout`` seconds a machine that does not answer counts as lost; within the other half, processes that have
    not ended by themselves, such as by the failure of a collective, are ended.
    """
    if world_size == 1:
        return
    try:
        watch = (FirstPeerWatch if rank == 0 else PeerWatch)(store, rank, world_size, timeout)
    except (OSError, dist.DistError) as error:
        print_log(f'Rank {rank}: a process that ends is noticed late, by the timeout of the collectives: {error}')
        return
    _at_fork(after_in_child=_close_inherited)
    _watches.append(watch)
    atexit.register(watch.leave)
    threading.Thread(target=watch.run, daemon=True, name='peer watch').start()


@contextmanager
def explain_losses(work_dir: str | Path) -> Iterator[None]:
    """Raise :class:`LostProcessError` for failures that follow from the end of another process.

    The first process that remains does, the others exit with code 1. Any other failure is announced to them.
    """
    _run_folders.append(Path(work_dir))
    try:
        yield
    except Exception as error:
        if not _watches:
            raise
        watch = _watches[0]
        if isinstance(error, RuntimeError) and re.search('gloo|nccl|connection|TCPStore', str(error), re.IGNORECASE):
            watch.noticed.wait(_EXPLAIN_SECONDS)
        if watch.lost is not None and not isinstance(error, UserError):
            if watch.speaks:
                raise LostProcessError(watch.describe()) from None
            sys.exit(1)
        reason = (str(error).strip().splitlines() or [''])[0][:300]
        watch.leave(watch.notice(watch.rank, f'{type(error).__name__}: {reason}'))
        raise
    finally:
        _run_folders.pop()


class PeerWatch:
    """Connection to the first process, which reports the first process that has ended."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout: float) -> None:
        self.rank, self.world_size, self.timeout = rank, world_size, timeout
        self.lost: dict | None = None
        self.noticed, self._left = threading.Event(), threading.Event()
        self.sockets: set[socket.socket] = set()
        self._open(store)

    def _open(self, store: dist.Store) -> None:
        store.wait(['watch'], timedelta(seconds=self.timeout))
        found = json.loads(store.get('watch'))
        connection = socket.create_connection((os.environ['MASTER_ADDR'], found['port']), self.timeout)
        connection.settimeout(None)
        self._keep_alive(connection)
        hello = dict(token=found['token'], rank=self.rank, host=socket.gethostname(), pid=os.getpid())
        connection.sendall(json.dumps(hello).encode() + b'\n')
        self.sockets.add(connection)
        self._first, self._connection = found, connection

    def _keep_alive(self, connection: socket.socket) -> None:
        """Let the kernel probe the machine at the other end, four times within half of the timeout."""
        pause = max(1, int(self.timeout / 8))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in ('TCP_KEEPIDLE', 'TCP_KEEPINTVL'):
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), pause)
        if hasattr(socket, 'TCP_KEEPCNT'):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

    def run(self) -> None:
        """Wait for news from the first process, or its end."""
        received = b''
        while not received.endswith(b'\n'):
            chunk = _receive(self._connection)
            if not chunk:
                received = self.notice(0)
            received += chunk
        if received != _BYE:
            self._end(json.loads(received))

    def notice(self, rank: int, reason: str | None = None) -> bytes:
        """Format the news that a process has ended."""
        here = dict(host=socket.gethostname(), pid=os.getpid())
        place = here if rank == self.rank else dict(host=self._first['host'], pid=self._first['pid'])
        return json.dumps(dict(place, rank=rank, reason=reason)).encode() + b'\n'

    @property
    def speaks(self) -> bool:
        """Whether this is the first of the processes that remain."""
        return self.lost is not None and self.rank == (1 if self.lost['rank'] == 0 else 0)

    def describe(self) -> str:
        """Say which process has ended, and how to go on."""
        assert self.lost is not None
        reason = self.lost['reason'] or 'without a message: killed, or its machine was lost'
        where = f'process {self.lost["pid"]} on {self.lost["host"]}'
        pointer = _run_folders[-1] / 'last_checkpoint' if _run_folders else None
        advice = 'it had saved no checkpoint: start again'
        if pointer and pointer.is_file():
            advice = f'the last checkpoint is {pointer.read_text()}: go on with the same command and --resume'
        return f'rank {self.lost["rank"]} of {self.world_size} has ended ({where}; {reason}); {advice}'

    def leave(self, message: bytes = _BYE) -> None:
        """Tell the others why this process ends; after the first message nothing is sent."""
        if self._left.is_set():
            return
        self._left.set()
        for connection in list(self.sockets):
            with suppress(OSError):
                connection.sendall(message)
                connection.shutdown(socket.SHUT_WR)

    def _end(self, lost: dict) -> None:
        """End this process if it does not end by itself."""
        if self._left.is_set():
            return
        self.lost = lost
        self.noticed.set()
        if self._left.wait(self.timeout / 2):
            return
        if self.speaks:
            print(self.describe(), file=sys.stderr, flush=True)
        os._exit(1)


class FirstPeerWatch(PeerWatch):
    """Connections to all other processes."""

    def _open(self, store: dist.Store) -> None:
        self._server = socket.create_server(('', 0), backlog=self.world_size)
        self.sockets.add(self._server)
        self.token = secrets.token_hex()
        self._received: dict[socket.socket, bytes] = {}
        found = dict(port=self._server.getsockname()[1], token=self.token, host=socket.gethostname(), pid=os.getpid())
        store.set('watch', json.dumps(found))

    def run(self) -> None:
        """Wait until a process has ended without a farewell, and tell the others."""
        # Unlike epoll's, its state is not shared with forked processes.
        with selectors.PollSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            while not self._left.is_set():
                for key, _ in selector.select():
                    lost = self._read(selector, key.fileobj)
                    if lost is not None:
                        self._tell(lost)
                        self._end(lost)
                        return

    def _read(self, selector: selectors.BaseSelector, source) -> dict | None:
        """Accept a connection, or read from one; return who has ended, if it was not in peace."""
        if source is self._server:
            connection, _ = self._server.accept()
            self._keep_alive(connection)
            self._received[connection] = b''
            self.sockets.add(connection)
            selector.register(connection, selectors.EVENT_READ)
            return None
        chunk = _receive(source)
        self._received[source] += chunk
        if chunk:
            return None
        selector.unregister(source)
        self.sockets.remove(source)
        source.close()
        return self._judge(self._received.pop(source))

    def _judge(self, received: bytes) -> dict | None:
        hello, _, farewell = received.partition(b'\n')
        with suppress(ValueError, KeyError, TypeError):
            peer = json.loads(hello)
            # Others than the processes of this run may connect.
            if secrets.compare_digest(peer.pop('token'), self.token) and farewell != _BYE:
                return json.loads(farewell) if farewell else dict(peer, reason=None)
        return None

    def _tell(self, lost: dict) -> None:
        for connection in self._received:
            with suppress(OSError):
                connection.sendall(json.dumps(lost).encode() + b'\n')

    def leave(self, message: bytes = _BYE) -> None:
        """Tell all others why this process ends."""
        self.sockets.discard(self._server)
        super().leave(message)


def _receive(connection: socket.socket) -> bytes:
    """Read what has arrived; nothing if the other end has gone, also without closing the connection."""
    try:
        return connection.recv(4096)
    except OSError:
        return b''


def peer_timeout(configured: float | None) -> float:
    """Seconds within which the end of a process ends the others: ``LOST_PROCESS_TIMEOUT``, the config's, or 20."""
    text = os.environ.get('LOST_PROCESS_TIMEOUT') or configured or 20
    with suppress(ValueError, TypeError):
        if float(text) > 0:
            return float(text)
    raise LaunchError(f'LOST_PROCESS_TIMEOUT or env_cfg.dist_cfg.lost_process_timeout is {text!r}: expected seconds')


def _close_inherited() -> None:
    """Close the connections in forked processes, such as workers of a DataLoader, which may outlive this one."""
    while _watches:
        for connection in _watches.pop().sockets:
            connection.close()


# Registers a function once.
_at_fork = cache(os.register_at_fork)
