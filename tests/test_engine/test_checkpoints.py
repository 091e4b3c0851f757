import errno
import os
import re
import shutil
import signal
import struct
import zipfile

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from mmengine.runner.checkpoint import get_torch_safe_globals
from mmpretrain.registry import MODELS
from testing.toy_training import interrupt, train
from torch import nn

from mm_sop.encoders.checkpoint import WeightsError, read_checkpoint
from mm_sop.engine import processes
from mm_sop.engine.checkpoints import CheckpointError, check_resumable, check_start, describe_damage, find_latest
from mm_sop.engine.hooks import PretrainCheckpointHook, checkpoint_hook
from mm_sop.engine.processes import StopSignals
from mm_sop.report.run_log import read_scalars
from mm_sop.utils import files as atomic


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Work directory of a finished run with two checkpoints."""
    work_dir = tmp_path_factory.mktemp('finished')
    train(work_dir)
    return work_dir


@pytest.fixture
def copied(finished, work_dir):
    shutil.copytree(finished, work_dir, dirs_exist_ok=True)
    return work_dir


def names(work_dir):
    return sorted(path.name for path in work_dir.glob('*.pth'))


def test_recent_checkpoints_are_kept_and_the_latest_is_named(finished):
    # Interval 4 and the ends of epochs, 7, 14 and 21, each after the next optimizer step.
    assert names(finished) == ['iter_20.pth', 'iter_21.pth']
    assert find_latest(finished) == finished / 'iter_21.pth'


def test_checkpoints_load_without_running_code(finished):
    with torch.serialization.safe_globals(get_torch_safe_globals()):
        checkpoint = torch.load(finished / 'iter_21.pth', weights_only=True)
    assert checkpoint['meta']['iter'] == 21
    assert checkpoint['meta']['epoch'] == 3
    assert checkpoint['pretrain']['iters_per_epoch'] == 7
    assert len(checkpoint['pretrain']['random_states']) == 1


def test_older_checkpoints_are_removed_only_after_the_new_one(work_dir, monkeypatch):
    seen = []
    save = Runner.save_checkpoint

    def watch(self, out_dir, filename, *args, **kwargs):
        before = names(work_dir)
        save(self, out_dir, filename, *args, **kwargs)
        seen.append((before, names(work_dir)))

    monkeypatch.setattr(Runner, 'save_checkpoint', watch)
    train(work_dir, **{'default_hooks.checkpoint.max_keep_ckpts': 1})
    assert [len(before) for before, _ in seen] == [0] + [1] * (len(seen) - 1)
    assert all(len(after) == len(before) + 1 for before, after in seen)
    assert names(work_dir) == ['iter_21.pth']


def test_permanent_checkpoints_stay(work_dir):
    train(work_dir, **{'default_hooks.checkpoint': dict(interval=2, epochs=-1, keep_every=2, max_keep_ckpts=1)})
    assert names(work_dir) == ['iter_14.pth', 'iter_21.pth']


def test_a_full_disk_leaves_the_run_resumable(work_dir, monkeypatch):
    """The disk is full from the second checkpoint on."""
    flush, calls = os.fsync, []

    def fill(descriptor):
        calls.append(descriptor)
        # Two flushes, of file and folder, for the record of the start, the first checkpoint and its name.
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, 'No space left on device')
        flush(descriptor)

    monkeypatch.setattr(atomic.os, 'fsync', fill)
    with pytest.raises(OSError, match=r'No space left on device: [\d,]+ bytes are needed .*iter_8\.pth'):
        train(work_dir)
    assert names(work_dir) == ['iter_4.pth']
    assert find_latest(work_dir) == work_dir / 'iter_4.pth'
    assert not list(work_dir.glob('.*.tmp'))
    monkeypatch.undo()
    assert train(work_dir, resume=True, experiment_name='resumed').iter == 21


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def scribble(path):
    path.write_bytes(b'not a checkpoint')


def parts_of(path):
    """Where the contents of an archive's files lie: first byte and number of bytes."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            lengths = struct.unpack_from('<HH', content, record.header_offset + 26)
            yield record.header_offset + 30 + sum(lengths), record.file_size


def flip_a_bit(path):
    start, size = max(parts_of(path), key=lambda part: part[1])
    content = bytearray(path.read_bytes())
    content[start + size // 2] ^= 1
    path.write_bytes(content)


def zero_a_block(path):
    with path.open('r+b') as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(4096))


def run_code(path):
    torch.save(dict(torch.load(path, weights_only=False), hook=Code()), path)


class Code:
    def __reduce__(self):
        return (print, ('code was run',))


def weights_only(path):
    torch.save(dict(state_dict={}, meta={}), path)


@pytest.mark.parametrize(
    ('damage', 'fault'),
    [
        (truncate, 'it is truncated or no checkpoint'),
        (empty, 'it is empty'),
        (scribble, 'truncated or no checkpoint'),
        (flip_a_bit, 'it is damaged, the checksum of its part .* is wrong'),
        (zero_a_block, 'it cannot be read'),
        (run_code, 'it holds the Python object print, which would run code'),
        (weights_only, 'message_hub, optimizer missing'),
        (os.remove, 'there is no such file'),
    ],
)
def test_damaged_checkpoint_is_refused_with_the_newest_sound_one(copied, damage, fault, capsys):
    path = find_latest(copied)
    damage(path)
    with pytest.raises(CheckpointError, match=fault) as caught:
        check_resumable(path)
    assert 'weights_only' not in str(caught.value) and 'code was run' not in capsys.readouterr().out
    assert str(path) in str(caught.value)
    assert f'--resume {copied / "iter_20.pth"}' in str(caught.value)


def test_flipped_bits_that_a_checksum_covers_are_detected(copied):
    """In all parts of the archive: pickle, tensors and the small ones."""
    path = copied / 'iter_21.pth'
    whole = path.read_bytes()
    random, seen = np.random.default_rng(0), 0
    for start, size in list(parts_of(path)):
        for place in {0, size - 1, *random.integers(size, size=2).tolist()}:
            content = bytearray(whole)
            content[start + place] ^= 1 << int(random.integers(8))
            path.write_bytes(content)
            assert describe_damage(path)
            with pytest.raises(WeightsError, match=r'iter_21.pth cannot be read.*intact .*iter_20.pth'):
                read_checkpoint(path)
            seen += 1
    assert seen > 40


@pytest.mark.parametrize('content', [b'', b'\n', b'\xff\xfe\x00\x9d' * 9, bytes(4096), b'iter_21.pth\0\0\0'])
def test_damaged_pointers_are_reported_and_the_newest_checkpoint_is_used(content, copied, capsys):
    (copied / 'last_checkpoint').write_bytes(content)
    assert find_latest(copied) == copied / 'iter_21.pth'
    assert 'last_checkpoint is damaged, it names no checkpoint' in capsys.readouterr().out


def test_a_folder_in_place_of_the_pointer_is_reported(copied):
    (copied / 'last_checkpoint').unlink()
    (copied / 'last_checkpoint').mkdir()
    with pytest.raises(CheckpointError, match='last_checkpoint is a folder, .*: move it away'):
        find_latest(copied)


def test_runs_start_only_from_weights_of_their_own_backbone(copied, work_dir, capsys):
    checkpoint = torch.load(copied / 'iter_21.pth', weights_only=False)
    state, path = checkpoint['state_dict'], copied / 'other.pth'
    first = 'backbone.layers.0.weight'
    start = dict(load_from=str(path), **{'train_cfg.max_epochs': 1})
    for change, message in (
        ({first: torch.zeros(16, 8)}, r'shape +backbone.layers.0.weight +\(16, 8\), expected \(8, 8\)'),
        ({first: None}, r'missing +backbone.layers.0.weight'),
        (dict.fromkeys(state), 'other.pth holds no weights'),
    ):
        changed = {name: value for name, value in dict(state, **change).items() if value is not None}
        torch.save(dict(state_dict=changed), path)
        with pytest.raises(WeightsError, match=message):
            train(copied / 'new', **start)
    # What is around the backbone may differ, and wrappers' names do not matter.
    others = {f'module.{name}': value + 1 for name, value in state.items() if not name.startswith('teacher.')}
    others['module.head.weight'] = torch.zeros(3)
    for content in (dict(state_dict=others), dict(model=others), others):
        torch.save(content, path)
        runner = train(copied / 'new', **start, **{'optim_wrapper.optimizer.lr': 0.0})
        # A teacher that is not there begins as the student.
        for name in (first, f'teacher.{first}'):
            torch.testing.assert_close(runner.model.state_dict()[name], state[first] + 1)


def test_position_embeddings_may_be_resized_when_a_run_starts():
    vit = dict(type='VisionTransformer', arch=dict(embed_dims=8, num_layers=1, num_heads=1, feedforward_channels=8))
    large, small = (MODELS.build(dict(vit, img_size=size, patch_size=8)) for size in (32, 16))
    model = nn.ModuleDict(dict(backbone=small))
    model.backbone = small
    state = {f'backbone.{name}': value for name, value in large.state_dict().items()}
    check_start(model, dict(state_dict=state), 'w.pth')
    with pytest.raises(WeightsError, match=r'shape +backbone.ln1.weight'):
        check_start(model, dict(state_dict={**state, 'backbone.ln1.weight': torch.ones(9)}), 'w.pth')


def test_missing_sound_checkpoints_are_reported(copied):
    for path in copied.glob('*.pth'):
        truncate(path)
    with pytest.raises(CheckpointError, match='no other checkpoint beside it is readable'):
        check_resumable(copied / 'iter_21.pth')


def test_moved_run_and_lost_pointer_are_found(copied):
    # `last_checkpoint` holds the path in the folder that was copied.
    (copied / 'last_checkpoint').write_text('/elsewhere/iter_20.pth')
    assert find_latest(copied) == copied / 'iter_20.pth'
    (copied / 'last_checkpoint').unlink()
    assert find_latest(copied) == copied / 'iter_21.pth'
    assert find_latest(copied / 'nothing') is None


def test_checkpoint_of_another_model_is_refused(copied):
    checkpoint = torch.load(copied / 'iter_21.pth', weights_only=False)
    checkpoint['state_dict']['backbone.token'] = torch.zeros(1, 1, 16)
    checkpoint['state_dict']['neck.weight'] = torch.zeros(1)
    del checkpoint['state_dict']['backbone.layers.0.bias']
    torch.save(checkpoint, copied / 'iter_21.pth')
    with pytest.raises(CheckpointError) as caught:
        train(copied, resume=True, load_from=str(copied / 'iter_21.pth'))
    message = str(caught.value)
    assert 'another model, 3 tensors differ' in message
    assert re.search(r'shape +backbone.token +\(1, 1, 16\), expected \(1, 1, 8\)', message)
    assert re.search(r'unexpected +neck.weight', message)
    assert re.search(r'missing +backbone.layers.0.bias', message)


def test_permanent_checkpoint_outlives_a_later_one_of_its_number(work_dir):
    """With half the batch, iteration 15 is the end of the first epoch; with the whole batch it is in the third."""
    changes = {
        'default_hooks.checkpoint': dict(interval=5, keep_every=1, max_keep_ckpts=1),
        'optim_wrapper.accumulative_counts': 1,
    }
    interrupt(work_dir, 18, **changes, **{'train_dataloader.batch_size': 2})
    assert names(work_dir) == ['iter_10.pth', 'iter_15.pth']
    interrupt(work_dir, 17, **changes, resume=True, experiment_name='larger')
    checkpoints = {path.stem: torch.load(path, weights_only=False) for path in work_dir.glob('*.pth')}
    assert {name: checkpoint['meta']['position'] for name, checkpoint in checkpoints.items()} == {
        'iter_15_earlier': dict(epoch=1, samples_of_epoch=0, samples=30),
        'iter_14': dict(epoch=2, samples_of_epoch=0, samples=30 + 7 * 4),
        'iter_15': dict(epoch=2, samples_of_epoch=4, samples=30 + 8 * 4),
    }


def test_a_new_run_in_the_folder_of_another_one_overwrites_none_of_its_checkpoints(work_dir):
    first = train(work_dir, **{'train_cfg.max_epochs': 2})
    second = train(work_dir, experiment_name='second', **{'randomness.seed': 4})
    states = {path.stem: torch.load(path, weights_only=False)['state_dict'] for path in work_dir.glob('*.pth')}
    assert set(states) == {'iter_12_earlier', 'iter_14_earlier', 'iter_20', 'iter_21'}
    for state, runner in ((states['iter_14_earlier'], first), (states['iter_21'], second)):
        assert all(torch.equal(value, state[name]) for name, value in runner.model.state_dict().items())
    assert find_latest(work_dir) == work_dir / 'iter_21.pth'


def test_best_checkpoint_survives_the_removal(work_dir):
    options = dict(save_best='accuracy', rule='greater', max_keep_ckpts=1)
    runner = train(work_dir, **{'default_hooks.checkpoint': options, 'train_cfg.max_epochs': 1})
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, PretrainCheckpointHook)]
    hook.after_val_epoch(runner, dict(accuracy=0.5))
    hook.after_val_epoch(runner, dict(accuracy=0.4))
    assert names(work_dir) == ['best_accuracy_iter_7.pth', 'iter_7.pth']


def test_signal_interval_must_be_positive():
    with pytest.raises(ValueError, match='signal_interval must be at least 1'):
        PretrainCheckpointHook(signal_interval=0)


def test_signals_are_handled_during_training_only(work_dir):
    before = signal.getsignal(signal.SIGTERM)
    hooks = [dict(type='SignalHook', name='SIGINT', iteration=3)]
    with pytest.raises(SystemExit) as stopped:
        train(work_dir, custom_hooks=hooks)
    assert stopped.value.code == 130
    assert names(work_dir) == ['iter_4.pth']
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_signal_ends_the_process_but_an_echo_does_not(monkeypatch):
    clock, codes = [0.0], []
    monkeypatch.setattr(processes.time, 'monotonic', lambda: clock[0])
    monkeypatch.setattr(processes.os, '_exit', codes.append)
    signals = StopSignals()
    signals.install()
    try:
        for seconds in (0.0, 0.5, 1.9):
            clock[0] = seconds
            signal.raise_signal(signal.SIGTERM)
        assert (signals.received, codes) == (signal.SIGTERM, [])
        clock[0] = 5.0
        signal.raise_signal(signal.SIGINT)
    finally:
        signals.uninstall()
    assert codes == [130]


def lengths_of_histories(runner):
    return {key: len(history.data[0]) for key, history in runner.message_hub.log_scalars.items()}


def test_histories_in_checkpoints_are_bounded(work_dir, monkeypatch):
    """A checkpoint with long histories is resumed to the same averages as one with short histories."""
    rules = [
        dict(data_src='loss', log_name='loss_epoch', method_name='mean', window_size='epoch'),
        dict(data_src='loss_cls', log_name='loss_max', method_name='max'),
        dict(data_src='agreement', log_name='agreement_6', method_name='mean', window_size=6),
    ]
    changes = dict(log_processor=dict(window_size=5, custom_cfg=rules))
    averages = []
    for name, shortest in (('long', 10**6), ('short', 3)):
        monkeypatch.setattr(checkpoint_hook, 'MIN_HISTORY', shortest)
        for experiment, limit in (('first', 12), ('second', 21)):
            options = {'train_cfg.max_iters': limit, 'resume': experiment == 'second', **changes}
            runner = train(work_dir / name, experiment_name=f'{name} {experiment}', **options)
        scalars = read_scalars(work_dir / name)
        averages.append({key: scalars[key] for key in scalars if key.startswith(('loss', 'agreement'))})
        lengths = lengths_of_histories(runner)
        assert lengths['train/loss_cls'] == 21
        assert lengths['train/loss'] == (21 if name == 'long' else 7)
        assert lengths['train/agreement'] == (21 if name == 'long' else 6)
        assert lengths['train/grad_norm'] <= (21 if name == 'long' else 5)
    assert averages[0] == averages[1] and {'loss_epoch', 'loss_max', 'agreement_6'} < averages[0].keys()
    # An older checkpoint shrinks with the next one.
    resumed = train(work_dir / 'long', experiment_name='third', resume=True, **{'train_cfg.max_epochs': 4, **changes})
    assert lengths_of_histories(resumed)['train/loss'] == 7
