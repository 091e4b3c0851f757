import errno
import os
import re
import resource
import signal
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from testing.toy_training import toy_config
from torch.utils.data import DataLoader, Dataset

from mm_sop.datasets.seeded import AllUnreadableError
from mm_sop.datasets.transforms.loading import UnreadableImageError
from mm_sop.engine import launch as launching
from mm_sop.engine import preflight
from mm_sop.engine.runner import drop_worker_options
from mm_sop.utils.failures import LaunchError, describe_failure, report_failures
from mm_sop.utils.files import write_atomically


class Failing(Dataset):
    """Raises an error or sends a signal to itself in the worker process."""

    def __init__(self, failure):
        self.failure = failure

    def __len__(self):
        return 1

    def __getitem__(self, index):
        if isinstance(self.failure, int):
            os.kill(os.getpid(), self.failure)
        raise self.failure


FAILURES = [
    (signal.SIGKILL, 'a worker process was killed'),
    (signal.SIGBUS, 'too little shared memory .*num_workers=0.*--shm-size'),
    (RuntimeError('unable to write to file </torch_1_2_0>: No space left on device (28)'), 'too little shared memory'),
    (RuntimeError('unable to open shared memory object </torch_1> : Too many open files (24)'), 'ulimit -n'),
    (OSError(errno.EROFS, 'Read-only file system', '/x'), "'/x'; choose a folder that can be written to$"),
    (UnreadableImageError('/a/b.jpg', 'it is empty'), '^/a/b.jpg: it is empty$'),
    (AllUnreadableError('3 in a row:\n  a\n  b'), '^3 in a row:\n  a\n  b$'),
]


@pytest.mark.parametrize(('failure', 'message'), FAILURES, ids=[str(message) for _, message in FAILURES])
def test_failures_of_worker_processes(failure, message):
    with pytest.raises((RuntimeError, OSError)) as info:
        next(iter(DataLoader(Failing(failure), num_workers=1)))
    described = describe_failure(info.value, (UnreadableImageError, AllUnreadableError))
    assert re.search(message, described)
    assert 'Traceback' not in described


def test_faults_of_the_program_keep_their_traceback():
    faults = [RuntimeError('shapes'), KeyError('x'), ConnectionResetError(errno.ECONNRESET, 'reset'), ValueError('x')]
    assert [describe_failure(fault) for fault in faults] == [None] * 4
    with pytest.raises(KeyError), report_failures('x.py'):
        raise KeyError('x')


def end_of(program, error, *expected):
    with pytest.raises(SystemExit) as info, report_failures(program, *expected):
        raise error
    return info.value.code


def test_a_program_ends_with_one_message(tmp_path, capsys):
    assert end_of('x.py', LaunchError('the reason')) == 'x.py: the reason'
    assert end_of('x.py', ValueError('the reason'), ValueError) == 'x.py: the reason'
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(tmp_path / 'a'))
    assert end_of('x.py', missing) == f'x.py: {tmp_path}/a: No such file or directory; check the path'
    assert 'lower it' in end_of('x.py', torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'))
    assert end_of('x.py', KeyboardInterrupt()) == 130
    assert 'x.py: interrupted' in capsys.readouterr().err


def test_limit_of_the_file_size(tmp_path):
    """The limit itself, in a process that ends with the code 1 and leaves the older file."""
    path = tmp_path / 'file'
    write_atomically(path, b'old')
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with report_failures('x.py'):
                write_atomically(path, bytes(2000))
        except SystemExit as error:
            os.write(2, str(error.code).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader) as messages:
        message = messages.read()
    assert re.fullmatch(rf'x\.py: {path}: File too large: 2,000 bytes are needed.*ulimit -f.*', message)
    assert path.read_bytes() == b'old' and len(list(tmp_path.iterdir())) == 1


def test_missing_trackers_are_named_at_the_door(work_dir, monkeypatch):
    config = toy_config('unused', visualizer=dict(vis_backends=[dict(type='mmengine.WandbVisBackend')]))
    monkeypatch.setattr(preflight, 'find_spec', lambda name: None)
    with pytest.raises(LaunchError, match=r'WandbVisBackend needs the package wandb.*\[wandb\]'):
        launching.launch(config, str(work_dir / 'run'))
    assert not (work_dir / 'run').exists()
    preflight.check_trackers(Config(dict(visualizer=dict(vis_backends=[dict(type='LocalVisBackend')]))))


def test_options_of_workers_do_no_harm_without_them(work_dir):
    options = dict(persistent_workers=True, prefetch_factor=4)
    config = toy_config('unused', train_dataloader=options)
    assert launching.launch(config, str(work_dir)).iter == 21
    config = Config(dict(val_dataloader=dict(num_workers=2, **options), test_dataloader=dict(**options)))
    drop_worker_options(config)
    assert config.val_dataloader == dict(num_workers=2, **options) and config.test_dataloader == {}


def test_fewer_images_than_a_batch(work_dir):
    config = toy_config('unused', **{'train_dataloader.batch_size': 31})
    with pytest.raises(LaunchError, match='30 images do not fill one global batch of 31'):
        launching.launch(config, str(work_dir))


def test_a_launcher_that_has_not_started_the_process_is_refused(work_dir, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(LaunchError, match='--launcher pytorch: RANK is not set'):
        launching.launch(toy_config('unused'), str(work_dir), launcher='pytorch')


def test_every_program_reports_failures(repository):
    programs = [path for path in Path(repository, 'mm_sop/apps/cli').glob('*.py') if 'def main' in path.read_text()]
    assert len(programs) >= 9
    for path in programs:
        assert re.search(rf"^@report_failures\(\s*'{path.name}'", path.read_text(), re.MULTILINE), path.name
