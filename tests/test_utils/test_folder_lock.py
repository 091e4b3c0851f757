import errno
import multiprocessing
import os
import signal
import socket

import pytest
from testing.toy_training import toy_config

from mm_sop.engine.launch import launch
from mm_sop.utils import folder_lock
from mm_sop.utils.failures import LaunchError
from mm_sop.utils.folder_lock import LOCK, lock_folder


def test_second_run_is_refused_before_it_writes(work_dir):
    with lock_folder(work_dir):
        pattern = rf'{work_dir} is in use by process {os.getpid()} on {socket.gethostname()} .*--work-dir'
        with pytest.raises(LaunchError, match=pattern):
            launch(toy_config('unused'), str(work_dir), resume=True)
        assert [path.name for path in work_dir.iterdir()] == [LOCK]
    assert launch(toy_config('unused'), str(work_dir)).iter == 21


def hold(folder, pipe):
    with lock_folder(folder):
        worker = multiprocessing.get_context('fork').Process(target=signal.pause)
        worker.start()
        pipe.send(worker.pid)
        signal.pause()


def test_a_killed_owner_leaves_no_lock_though_its_workers_live(work_dir):
    context = multiprocessing.get_context('fork')
    pipe, other_end = context.Pipe()
    owner = context.Process(target=hold, args=(work_dir, other_end))
    owner.start()
    worker = pipe.recv()
    try:
        with pytest.raises(LaunchError, match=f'process {owner.pid} '), lock_folder(work_dir):
            pass
        owner.kill()
        owner.join()
        os.kill(worker, 0)
        with lock_folder(work_dir):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_without_locks_of_the_file_system_a_run_is_warned(work_dir, monkeypatch, capsys):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(folder_lock.fcntl, 'flock', refuse)
    with lock_folder(work_dir):
        pass
    assert 'make sure that no other run writes there' in capsys.readouterr().out
