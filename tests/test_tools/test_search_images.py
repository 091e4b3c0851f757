import runpy
import sys
from http.server import HTTPServer

import pytest
import torch
from mmengine.config import Config
from testing.sample_images import write_images
from testing.sop_models import build_sop, sop_config


@pytest.fixture
def checkpoint(tmp_path):
    """Checkpoint of a run that says what it holds."""
    preprocessor = dict(type='SelfSupDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True)
    config = Config(dict(model=dict(sop_config(), data_preprocessor=preprocessor)))
    path = tmp_path / 'iter_1.pth'
    torch.save(dict(state_dict=build_sop().state_dict(), meta=dict(cfg=config.pretty_text)), path)
    return path


@pytest.fixture
def call(repository, tmp_path, monkeypatch):
    def call(*arguments):
        shared = ['--index', tmp_path / 'index', '--num-workers', '0', '--no-open']
        monkeypatch.setattr(sys, 'argv', ['search_images.py', *map(str, (*arguments, *shared))])
        runpy.run_path(str(repository / 'tools/search_images.py'), run_name='__main__')

    return call


def test_index_and_page(call, checkpoint, tmp_path, monkeypatch, capsys):
    write_images(tmp_path / 'mine', 5)
    (tmp_path / 'mine/broken.png').write_bytes(b'x')
    call(checkpoint, tmp_path / 'mine', '--index-only')
    assert '5 images can be searched, 5 were encoded' in capsys.readouterr().out

    def interrupt(server):
        assert len(server.index) == 5 and server.max_upload == 2**20
        raise KeyboardInterrupt

    monkeypatch.setattr(HTTPServer, 'serve_forever', interrupt)
    call(checkpoint, tmp_path / 'mine', '--port', 0, '--max-upload', 1)
    out = capsys.readouterr().out
    assert '5 images can be searched, 0 were encoded' in out and 'Search at http://127.0.0.1:' in out
    assert '1 files cannot be read' in out and 'unreadable.txt' in out


def test_bad_arguments_and_a_full_disk_are_explained_in_one_line(call, checkpoint, tmp_path, full_disk):
    with pytest.raises(SystemExit, match='search_images.py: data folder .*nowhere does not exist'):
        call(checkpoint, tmp_path / 'nowhere')
    with pytest.raises(SystemExit, match='search_images.py: no checkpoint .*missing.pth'):
        call(tmp_path / 'missing.pth', tmp_path)
    write_images(tmp_path / 'mine', 2)
    with full_disk(), pytest.raises(SystemExit, match='search_images.py: .*bytes are needed.*index'):
        call(checkpoint, tmp_path / 'mine', '--index-only')
    with pytest.raises(SystemExit, match='cannot listen on 192.0.2.1:0: .*--host'):
        call(checkpoint, tmp_path / 'mine', '--host', '192.0.2.1', '--port', 0)
