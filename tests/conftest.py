"""Settings and fixtures of all tests."""

import errno
import json
import os
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

# Before torch, NumPy and OpenCV start their thread pools: tests share few cores with worker processes.
for _variable in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'NUMBA_NUM_THREADS'):
    os.environ.setdefault(_variable, '1')
os.environ.setdefault('MPLBACKEND', 'Agg')
os.environ.setdefault('HF_HUB_OFFLINE', '1')

TESTS = Path(__file__).resolve().parent
# First of all, because some distributions install a top-level package called `tests` or `tools`.
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import pytest  # noqa: E402
import torch  # noqa: E402
from testing.distributed import reset_global_state  # noqa: E402
from testing.sample_images import write_images  # noqa: E402

from mm_sop import compat  # noqa: E402

# As the commands do.
compat.apply()
torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))


@pytest.fixture(autouse=True)
def isolated():
    """Seed every test alike, build in MMPretrain's scope, and leave no MMEngine singleton behind."""
    from mmengine.registry import init_default_scope

    reset_global_state()
    init_default_scope('mmpretrain')
    yield
    reset_global_state()


@pytest.fixture
def seed():
    """Seed of tests that train and compare with a bound: 0, or another one of tools/benchmarks/learning_margins.py."""
    return int(os.environ.get('MM_SOP_TEST_SEED', 0))


@pytest.fixture
def expect(record_property):
    """Compare what was learned with a bound, and record both for tools/benchmarks/learning_margins.py."""

    def compare(name, value, above=None, below=None):
        record_property(name, json.dumps(dict(value=value, above=above, below=below)))
        assert above is None or value > above, f'{name} is {value:.4g}, expected more than {above:.4g}'
        assert below is None or value < below, f'{name} is {value:.4g}, expected less than {below:.4g}'

    return compare


@pytest.fixture(scope='session')
def repository():
    """Root of the checkout."""
    return TESTS.parent


@pytest.fixture
def work_dir(tmp_path):
    """Fresh folder for checkpoints and logs."""
    path = tmp_path / 'work_dir'
    path.mkdir()
    return path


@pytest.fixture
def full_disk(monkeypatch):
    """Context in which there is no space for files with a text in their name."""
    allocate = os.posix_fallocate

    def refuse(text, descriptor, offset, length):
        if text in Path(os.readlink(f'/proc/self/fd/{descriptor}')).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(descriptor, offset, length)

    @contextmanager
    def full_disk(text=''):
        with monkeypatch.context() as patch:
            patch.setattr(os, 'posix_fallocate', partial(refuse, text))
            yield

    return full_disk


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """Folder with 12 small images in nested subfolders; not to be changed."""
    folder = tmp_path_factory.mktemp('images')
    write_images(folder, 12)
    return folder
