"""Fixtures of the tests of datasets."""

import pytest


@pytest.fixture
def tree(tmp_path):
    """Folder with image files, nested and hidden ones, and other files."""
    names = ['z.png', 'a.JPG', 'notes.txt', '.hidden.png', 'sub/b.jpeg', 'sub/deep/c.png', '.git/d.png', 'Sub/e.webp']
    for name in names:
        path = tmp_path / 'tree' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / 'tree/folder.jpg').mkdir()
    (tmp_path / 'tree/folder.jpg/inside.png').touch()
    return tmp_path / 'tree'
