import errno
import os
import resource
import signal
import time
from contextlib import contextmanager
from multiprocessing import get_context

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.fileio import get_file_backend

from mm_sop.engine.checkpoints import CheckpointError
from mm_sop.engine.hooks.checkpoint_hook import AtomicBackend
from mm_sop.engine.launch import launch
from mm_sop.utils import files as atomic
from mm_sop.utils.files import (
    make_folder_atomically,
    open_atomically,
    remove_stale_temporaries,
    write_array_atomically,
    write_atomically,
)
from mm_sop.utils.folder_lock import LOCK


@contextmanager
def file_size_limit(num_bytes):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_for_ever(folder, started):
    """A writer of a file and of a folder that never ends by itself."""
    with open_atomically(folder / 'iter_2.pth', 1000), make_folder_atomically(folder / 'report') as report:
        (report / 'index.html').write_bytes(b'half')
        started.set()
        time.sleep(3600)


@pytest.fixture
def writer(tmp_path):
    context = get_context('fork')
    started = context.Event()
    process = context.Process(target=write_for_ever, args=(tmp_path, started))
    process.start()
    started.wait()
    yield process
    process.kill()
    process.join()


def test_content_replaces_the_older_one_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / 'new' / 'file.txt'
    write_atomically(path, 'first')
    write_atomically(path, b'second')
    assert path.read_bytes() == b'second'
    assert os.listdir(path.parent) == ['file.txt']


def test_backend_is_known_by_name(tmp_path):
    backend = get_file_backend(str(tmp_path), backend_args=dict(backend='atomic'))
    assert isinstance(backend, AtomicBackend)
    backend.put(b'bytes', tmp_path / 'a')
    backend.put_text('ä', tmp_path / 'b')
    assert backend.get(tmp_path / 'a') == b'bytes'
    assert backend.get_text(tmp_path / 'b') == 'ä'


def test_full_disk_leaves_the_older_file_and_names_the_bytes(tmp_path, monkeypatch):
    path = tmp_path / 'iter_2.pth'
    path.write_bytes(b'old')

    def fail(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(atomic.os, 'fsync', fail)
    with pytest.raises(OSError, match=r'No space left.*12,345 bytes are needed and [\d,]+ are free') as caught:
        write_atomically(path, bytes(12345))
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['iter_2.pth']


def test_a_limit_of_the_system_in_the_middle_of_writing(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    with file_size_limit(4096), pytest.raises(OSError, match='100,000 bytes are needed'):
        write_atomically(path, bytes(100000))
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('can_allocate', [True, False])
def test_large_arrays_are_written_in_blocks_or_not_at_all(tmp_path, monkeypatch, can_allocate):
    def refuse(descriptor, offset, length):
        raise OSError(errno.EOPNOTSUPP, 'Operation not supported')

    if not can_allocate:
        monkeypatch.setattr(os, 'posix_fallocate', refuse)
    path, array = tmp_path / 'features.npy', np.arange(70_000, dtype=np.int16).reshape(-1, 7)
    write_array_atomically(path, array.shape, array.dtype, np.array_split(array, 6))
    assert np.array_equal(np.load(path, mmap_mode='r'), array)
    with file_size_limit(2**16), pytest.raises(OSError, match=r'140,128 bytes are needed'):
        write_array_atomically(path, array.shape, array.dtype, np.array_split(array, 6))
    with pytest.raises(ValueError, match='bytes'):
        write_array_atomically(path, array.shape, array.dtype, [array[1:]])
    assert np.array_equal(np.load(path), array) and os.listdir(tmp_path) == ['features.npy']


def test_a_full_disk_is_noticed_before_writing(tmp_path, full_disk):
    with full_disk(), pytest.raises(OSError, match='500 bytes are needed'), open_atomically(tmp_path / 'file', 500):
        pytest.fail('the block was entered')
    assert os.listdir(tmp_path) == []


def test_leftovers_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path, writer):
    (tmp_path / '.mine.tmp').touch()
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 3
    remove_stale_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == names
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert sorted(os.listdir(tmp_path)) == names
    write_atomically(tmp_path / 'last_checkpoint', 'iter_1.pth')
    assert sorted(os.listdir(tmp_path)) == ['.mine.tmp', 'last_checkpoint']
    remove_stale_temporaries(tmp_path / 'missing')


@pytest.mark.parametrize('has_locks', [True, False])
def test_leftovers_that_locks_say_nothing_about_must_be_old(tmp_path, monkeypatch, has_locks):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, 'No locks available')

    if not has_locks:
        monkeypatch.setattr(atomic.fcntl, 'flock', refuse)
    host = '0' * 8 if has_locks else atomic._HOST
    leftover = tmp_path / f'.iter_2.pth.{host}-01234567.tmp'
    leftover.touch()
    remove_stale_temporaries(tmp_path)
    assert leftover.exists()
    os.utime(leftover, (time.time() - 48 * 3600,) * 2)
    remove_stale_temporaries(tmp_path)
    assert not leftover.exists()


def test_a_folder_is_complete_or_absent(tmp_path):
    for content in ('first', 'second'):
        with make_folder_atomically(tmp_path / 'new' / 'report', replace=True) as folder:
            (folder / 'page').write_text(content)
    with pytest.raises(OSError), make_folder_atomically(tmp_path / 'new' / 'report') as folder:
        (folder / 'page').write_text('third')
    with pytest.raises(KeyboardInterrupt), make_folder_atomically(tmp_path / 'new' / 'report', replace=True) as folder:
        (folder / 'page').write_text('fourth')
        raise KeyboardInterrupt
    assert (tmp_path / 'new/report/page').read_text() == 'second'
    assert os.listdir(tmp_path / 'new') == ['report']


def test_a_run_begins_without_the_leftovers_of_a_killed_one(tmp_path):
    (tmp_path / f'.iter_2.pth.{atomic._HOST}-01234567.tmp').touch()
    with pytest.raises(CheckpointError, match='nowhere'):
        launch(Config(dict(model=dict(type='SOP'))), work_dir=str(tmp_path), resume=str(tmp_path / 'nowhere.pth'))
    assert os.listdir(tmp_path) == [LOCK]
