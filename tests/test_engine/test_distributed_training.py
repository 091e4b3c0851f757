import signal

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import ValLoop
from mmpretrain.registry import HOOKS, LOOPS
from testing.distributed import run_distributed
from testing.toy_training import differences, state_of, toy_config, train

from mm_sop.engine import PretrainRunner
from mm_sop.engine.hooks import bad_image_hook


def train_on_rank(work_dir, stop_at=None, **changes):
    cfg = toy_config(work_dir, launcher='pytorch', **changes)
    if stop_at:
        cfg.custom_hooks.append(dict(type='SignalHook', name='SIGTERM', iteration=stop_at, rank=1))
    runner = PretrainRunner.from_cfg(cfg)
    runner.train()
    return runner


def final_weights(rank, world_size, work_dir, changes):
    runner = train_on_rank(work_dir, **changes)
    return dict(runner.model.module.state_dict())


def test_two_processes_with_half_the_batch_equal_one_process(tmp_path):
    """The ranks see the halves of the same batches, and the mean of their gradients is that of the whole batch.

    Sums of halves are rounded differently from sums of wholes, so equality is that of float32 arithmetic.
    """
    changes = {'model.dropout': 0.0, 'train_dataloader.batch_size': 2}
    ours = run_distributed(final_weights, tmp_path / 'two', changes)
    one = train(tmp_path / 'one', **{'model.dropout': 0.0}).model.state_dict()
    assert one.keys() == ours[0].keys() == ours[1].keys()
    for name, value in one.items():
        assert ours[0][name].equal(ours[1][name])
        torch.testing.assert_close(ours[0][name], value, rtol=1e-5, atol=1e-6)


def interrupted_run(rank, world_size, folder):
    """Straight run; run with a signal on rank 1 and its continuation; continuation with the states of both ranks."""
    straight = train_on_rank(f'{folder}/straight', **{'train_dataloader.batch_size': 2})
    changes = {'train_dataloader.batch_size': 2, 'experiment_name': 'part'}
    try:
        train_on_rank(f'{folder}/parts', stop_at=9, **changes)
    except SystemExit as error:
        code = error.code
    changes.update(resume=True, experiment_name='resumed')
    resumed = train_on_rank(f'{folder}/parts', **changes)
    start = resumed.message_hub.get_info('keep_ckpt_ids')
    return code, differences(state_of(straight), state_of(resumed)), state_of(straight)['random'], start


def test_signal_on_one_rank_stops_all_and_the_run_continues_bit_identically(tmp_path):
    (code, differing, random, kept), (other_code, other_differing, other_random, _) = run_distributed(
        interrupted_run, str(tmp_path)
    )
    assert code == other_code == 128 + signal.SIGTERM
    assert differing == other_differing == []
    assert not random.equal(other_random), 'the ranks must draw different dropout masks'
    assert kept == [20, 21]


@HOOKS.register_module()
class OwnBufferHook(Hook):
    """Another buffer in every process, as without SyncBN."""

    def before_train(self, runner):
        runner.model.module.register_buffer('statistics', torch.tensor(5 + runner.rank))


@LOOPS.register_module()
class BufferLoop(ValLoop):
    """Records the buffers instead of validating."""

    def run(self):
        self.noted = [buffer.item() for buffer in self.runner.model.buffers()]


def buffers_of_validation(rank, world_size, work_dir):
    cfg = toy_config(work_dir, launcher='pytorch', **{'train_cfg.max_epochs': 1})
    cfg.val_dataloader = dict(batch_size=5, sampler=dict(type='DefaultSampler'), dataset=dict(type='ToyVectors'))
    cfg.val_cfg = dict(type='BufferLoop')
    cfg.val_evaluator = dict(type='Accuracy')
    cfg.custom_hooks.append(dict(type='OwnBufferHook'))
    runner = PretrainRunner.from_cfg(cfg)
    runner.train()
    return runner.val_loop.noted


def test_processes_validate_the_network_of_the_checkpoint(tmp_path):
    assert run_distributed(buffers_of_validation, str(tmp_path)) == [[5], [5]]


@pytest.fixture(scope='module')
def two_process_run(tmp_path_factory):
    from testing.distributed import reset_global_state

    work_dir = tmp_path_factory.mktemp('two_processes')
    run_distributed(final_weights, work_dir, {'train_dataloader.batch_size': 2, 'train_cfg.max_iters': 8})
    reset_global_state()
    return work_dir


def test_other_number_of_processes_continues_with_new_random_states(two_process_run, capsys):
    runner = train(two_process_run, resume=True)
    assert runner.iter == 21
    assert 'The run had 2 processes and has 1 now' in capsys.readouterr().out


def collect_bad_images(rank, world_size, work_dir):
    dataset = dict(type='SeededDataset', max_unreadable=0.2, dataset=dict(type='ToyVectors', unreadable=[5, 11, 17]))
    runner = train_on_rank(work_dir, **{'train_dataloader.dataset': dataset})
    return runner.message_hub.get_info('bad_images')


def test_bad_images_of_all_ranks_are_known_to_each(tmp_path):
    first, second = run_distributed(collect_bad_images, str(tmp_path))
    assert first == second == {f'/images/{index}.jpg': 'truncated' for index in (5, 11, 17)}
    assert len((tmp_path / 'bad_images.txt').read_text().splitlines()) == 3


def stop_for_bad_images(rank, world_size, work_dir):
    dataset = dict(type='SeededDataset', max_unreadable=0.0, dataset=dict(type='ToyVectors', unreadable=[5]))
    try:
        train_on_rank(work_dir, **{'train_dataloader.dataset': dataset})
    except bad_image_hook.TooManyBadImagesError as error:
        return str(error)


def test_too_many_bad_images_stop_all_ranks(tmp_path):
    first, second = run_distributed(stop_for_bad_images, str(tmp_path))
    assert first == second
    assert '1 of 30 images cannot be read' in first
