"""Data and contexts of the tests of protocols."""

import pytest
from testing.evaluation_encoders import make_context, write_classes


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """Twelve training and four validation images of each of three colors; not to be changed."""
    folder = tmp_path_factory.mktemp('data')
    write_classes(folder / 'train', 12)
    write_classes(folder / 'val', 4, seed=1)
    return folder


@pytest.fixture
def context(data, tmp_path):
    return make_context(data, tmp_path)
