import errno
import os
import re

import pytest

from mm_sop.datasets.image_files import ImageFiles, list_images


def test_follows_symbolic_links_without_endless_loops(tree, tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere/f.png').touch()
    (tree / 'link').symlink_to(tmp_path / 'elsewhere')
    (tree / 'file_link.png').symlink_to(tree / 'z.png')
    (tree / 'sub/loop').symlink_to(tree)
    listed = list_images(tree)
    assert str(tree / 'link/f.png') in listed
    assert str(tree / 'file_link.png') in listed
    assert len(listed) == 8


def test_what_cannot_be_followed_is_skipped_and_reported(tree, monkeypatch, capsys):
    listed = list_images(tree)
    (tree / 'circle.png').symlink_to(tree / 'circle.png')
    (tree / 'dead.png').symlink_to(tree / 'gone.png')
    os.mkfifo(tree / 'fifo.png')
    for name in ('x.avif', 'y.AVIF', 'z.\x1b[2J'):
        (tree / 'sub' / name).touch()
    (tree / 'sub/secret').mkdir()
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith('secret'):
            raise PermissionError(errno.EACCES, 'Permission denied', folder)
        return scan(folder)

    monkeypatch.setattr(os, 'scandir', refuse)
    capsys.readouterr()
    for _ in range(2):
        assert list_images(tree) == listed
    (message,) = capsys.readouterr().out.splitlines()
    found = set(re.search(r'left out (.*?)\. Only', message).group(1).split(', '))
    assert found == {
        '2 x .avif',
        '2 x links that cannot be followed',
        r'1 x .\x1b[2j',
        '1 x .txt',
        '1 x neither files nor folders',
        '1 x unreadable folders',
    }


def test_a_forbidden_data_folder_is_an_error(tree, monkeypatch):
    def refuse(folder):
        raise PermissionError(errno.EACCES, 'Permission denied', folder)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(PermissionError):
        list_images(tree)


def test_given_files_in_their_order_with_boxes(images):
    paths = sorted(images.glob('*/*'))[2::-1]
    dataset = ImageFiles(paths, [dict(type='mmpretrain.LoadImage')], boxes=[(0, 0, 9, 9 + index) for index in range(3)])
    assert len(dataset) == 3 and dataset.paths == paths
    assert dataset.get_data_info(1) == dict(img_path=str(paths[1]), box=(0, 0, 9, 10), sample_idx=1)
    assert dataset[2]['img'].shape == (48, 64, 3) and dataset[2]['box'] == (0, 0, 9, 11)
    assert 'box' not in ImageFiles(paths, []).get_data_info(0)
    assert len(ImageFiles([], [])) == 0
