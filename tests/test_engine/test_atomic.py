import errno
import os
import resource

import pytest
from mmengine.fileio import get_file_backend

from mm_sop.engine import atomic
from mm_sop.engine.atomic import AtomicBackend, write_atomically


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
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match='100,000 bytes are needed'):
            write_atomically(path, bytes(100000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['file']
