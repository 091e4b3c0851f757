import signal
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from mm_sop.engine.distributed import connect_processes
from mm_sop.engine.peers import FirstPeerWatch, PeerWatch
from mm_sop.utils.failures import LaunchError


@pytest.fixture
def watches(monkeypatch):
    """Watches of four processes, in threads of this one."""
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    store = dist.HashStore()
    watches = [(PeerWatch if rank else FirstPeerWatch)(store, rank, 4, 600.0) for rank in range(4)]
    for watch in watches:
        threading.Thread(target=watch.run, daemon=True).start()
    wait_until(lambda: len(watches[0].sockets) == 4)
    yield watches
    for watch in watches:
        watch.leave()


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def vanish(watch):
    """Close the connections as the kernel does when a process is killed."""
    for connection in watch.sockets:
        connection.shutdown(2)


def test_all_learn_which_process_was_lost_but_not_of_those_that_have_finished(watches):
    watches[3].leave()
    assert not watches[0].noticed.wait(0.5)
    vanish(watches[2])
    assert watches[0].noticed.wait(30)
    assert watches[1].noticed.wait(30)
    assert watches[0].describe() == watches[1].describe()
    assert watches[0].describe().startswith('rank 2 of 4 has ended')
    assert watches[0].speaks
    assert not watches[1].speaks
    assert not watches[3].noticed.is_set()


def test_a_failure_is_announced_with_its_reason(watches):
    watches[0].leave(watches[0].notice(0, 'MemoryError: too large'))
    for watch in watches[1:]:
        assert watch.noticed.wait(30)
        assert 'rank 0 of 4 has ended' in watch.describe()
        assert 'MemoryError: too large' in watch.describe()
    assert [watch.speaks for watch in watches] == [False, True, False, False]


def test_a_process_that_says_nothing_is_alive(watches):
    assert not any(watch.noticed.wait(0.5) for watch in watches)


_PEER = """
import sys, time
import torch.distributed as dist
from mm_sop.engine.peers import PeerWatch

watch = PeerWatch(dist.TCPStore('127.0.0.1', int(sys.argv[1]), 2, False), 1, 2, 1.0)
time.sleep(600)
"""


def test_a_stopped_process_is_alive_and_a_killed_one_is_not(monkeypatch):
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    store = dist.TCPStore('127.0.0.1', 0, 2, True, wait_for_workers=False)
    watch = FirstPeerWatch(store, 0, 2, 1.0)
    peer = subprocess.Popen([sys.executable, '-c', _PEER, str(store.port)])
    threading.Thread(target=watch.run, daemon=True).start()
    wait_until(lambda: len(watch.sockets) == 2)
    # Only the probes of the connection use the short timeout: its end would end this process.
    watch.timeout = 600.0
    peer.send_signal(signal.SIGSTOP)
    assert not watch.noticed.wait(6)
    peer.kill()
    assert watch.noticed.wait(30)
    watch.leave()
    assert 'rank 1 of 2 has ended' in watch.describe()
    peer.wait()


@pytest.mark.parametrize('value', ['soon', '-1'])
def test_a_timeout_is_a_number_of_seconds(monkeypatch, value):
    monkeypatch.setenv('LOST_PROCESS_TIMEOUT', value)
    with pytest.raises(LaunchError, match='expected seconds'):
        connect_processes('none')
