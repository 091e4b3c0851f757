import math

import numpy as np
import pytest
import torch
from mmengine.runner import Runner, ValLoop
from mmpretrain.registry import LOOPS
from testing.distributed import reset_global_state
from testing.toy_training import differences, interrupt, state_of, toy_config, train


@LOOPS.register_module()
class DrawingLoop(ValLoop):
    """Draws random numbers instead of validating."""

    num_runs = 0

    def run(self):
        self.num_runs += 1
        torch.rand(10)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """State after an uninterrupted run."""
    reset_global_state()
    return state_of(train(tmp_path_factory.mktemp('straight')))


# In the middle of an epoch, at its end, where accumulation delays the checkpoint, and after several interruptions.
@pytest.mark.parametrize('iterations', [(9,), (7,), (15,), (6, 13)])
def test_resumed_run_is_bit_identical(straight, work_dir, iterations):
    for index, iteration in enumerate(iterations):
        interrupt(work_dir, iteration, resume=index > 0, experiment_name=f'part{index}')
        np.random.rand(3), torch.rand(5)
    resumed = train(work_dir, resume=True, experiment_name='resumed')
    assert differences(straight, state_of(resumed)) == []
    assert resumed.message_hub.get_scalar('train/loss').data[0].shape == (21,)


def test_checkpoint_waits_for_the_step_that_uses_the_accumulated_gradients(straight, work_dir):
    changes = {'default_hooks.checkpoint': dict(interval=3, max_keep_ckpts=-1)}
    interrupt(work_dir, 11, **changes)
    assert sorted(path.name for path in work_dir.glob('*.pth')) == [
        'iter_10.pth',
        'iter_4.pth',
        'iter_6.pth',
        'iter_8.pth',
    ]
    assert differences(straight, state_of(train(work_dir, resume=True, experiment_name='resumed'))) == []


def test_test_of_bit_identity_would_notice_a_lost_random_state(straight, work_dir, monkeypatch):
    monkeypatch.setattr('mm_sop.engine.hooks.checkpoint_hook.restore_random_state', lambda state: None)
    interrupt(work_dir, 9)
    assert differences(straight, state_of(train(work_dir, resume=True, experiment_name='resumed')))


def test_resuming_loads_nothing_that_was_seen(work_dir):
    interrupt(work_dir, 13)
    runner = train(work_dir, resume=True, experiment_name='resumed')
    # From the checkpoint at iteration 12: 9 of 21 iterations with 4 vectors each.
    assert len(runner.train_dataloader.dataset.dataset.loaded) == 9 * 4


def run_with_plain_sampler(work_dir, **changes):
    cfg = toy_config(work_dir, **{'train_dataloader.sampler': dict(type='DefaultSampler', shuffle=True), **changes})
    cfg.train_dataloader.dataset = dict(type='ToyVectors', noise=0.0)
    if not cfg.get('resume') and changes:
        cfg.custom_hooks.append(dict(type='StopHook', iteration=9))
    runner = Runner.from_cfg(cfg)
    runner.train()
    return state_of(runner)


def test_other_samplers_are_fast_forwarded(work_dir):
    whole = run_with_plain_sampler(work_dir / 'straight')
    with pytest.raises(KeyboardInterrupt):
        run_with_plain_sampler(work_dir / 'parts', experiment_name='part')
    resumed = run_with_plain_sampler(work_dir / 'parts', experiment_name='resumed', resume=True)
    assert differences(whole, resumed) == []


def test_max_iters_ends_the_run_within_an_epoch(work_dir):
    runner = train(work_dir, **{'train_cfg.max_iters': 9})
    assert (runner.iter, runner.max_iters, runner.max_epochs) == (9, 9, 2)
    assert (work_dir / 'iter_9.pth').is_file()


def test_max_iters_alone_counts_epochs_by_itself(work_dir):
    cfg = toy_config(work_dir)
    cfg.train_cfg = dict(type='PretrainLoop', max_iters=10)
    cfg.param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False)]
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert (runner.iter, runner.max_epochs) == (10, 2)
    # The cosine ends with the run, not with the epoch.
    last = 0.01 * (1 + math.cos(math.pi * 9 / 10)) / 2
    assert runner.optim_wrapper.optimizer.param_groups[0]['lr'] == pytest.approx(last)


def test_length_is_needed(work_dir):
    cfg = toy_config(work_dir)
    cfg.train_cfg = dict(type='PretrainLoop')
    with pytest.raises(ValueError, match='max_epochs or train_cfg.max_iters'):
        Runner.from_cfg(cfg).train()


def test_too_few_images_for_one_batch(work_dir):
    with pytest.raises(ValueError, match=r'30 images do not fill one global batch of 64 \(64 x 1 processes\)'):
        train(work_dir, **{'train_dataloader.batch_size': 64})


def test_validation_does_not_affect_training(straight, work_dir):
    cfg = toy_config(work_dir)
    cfg.val_dataloader = dict(
        batch_size=5, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(type='ToyVectors', size=10)
    )
    cfg.val_cfg = dict(type='DrawingLoop')
    cfg.val_evaluator = dict(type='Accuracy')
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.val_loop.num_runs == 3
    assert differences(straight, state_of(runner)) == []
