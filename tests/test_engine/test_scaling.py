import math
from types import SimpleNamespace

import pytest
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import Runner
from torch import nn
from toy_training import toy_config

from mm_sop.engine.launch import launch
from mm_sop.engine.scaling import fit_schedules, pace_averaged_models, scale_learning_rate


def test_learning_rate_is_scaled_to_the_global_batch_with_accumulation(work_dir, capsys):
    cfg = toy_config(work_dir, auto_scale_lr=dict(base_batch_size=16, enable=True), log_level='INFO')
    runner = Runner.from_cfg(cfg)
    scale_learning_rate(runner)
    line = 'Learning rate 0.005 = 0.01 x 8 / 16; global batch 8 = 4 pictures x 1 processes x 2 accumulated'
    assert line in capsys.readouterr().out
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(wrapper, runner.auto_scale_lr)
    assert wrapper.optimizer.param_groups[0]['lr'] == 0.005
    assert runner.cfg.optim_wrapper.optimizer.lr == 0.01


def test_learning_rate_stays_without_scaling(work_dir):
    runner = Runner.from_cfg(toy_config(work_dir, auto_scale_lr=dict(base_batch_size=16)))
    scale_learning_rate(runner)
    assert runner.optim_wrapper['optimizer']['lr'] == 0.01


def test_scaled_rate_is_used_in_training(work_dir):
    cfg = toy_config('unused', auto_scale_lr=dict(base_batch_size=16, enable=True))
    runner = launch(cfg, str(work_dir))
    last = 0.005 * (1 + math.cos(math.pi * 20 / 21)) / 2
    assert runner.optim_wrapper.optimizer.param_groups[0]['lr'] == pytest.approx(last)


WARMUP = dict(type='LinearLR', start_factor=1e-9, by_epoch=True, begin=0, end=2, convert_to_iter_based=True)
COSINE = dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=2, convert_to_iter_based=True)


def rates_of(work_dir, max_iters):
    cfg = toy_config(work_dir, **{'train_cfg.max_iters': max_iters})
    cfg.param_scheduler = [WARMUP, COSINE]
    runner = launch(cfg, str(work_dir))
    return runner.message_hub.get_scalar('train/lr').data[0].tolist()


def test_schedules_of_a_whole_run_are_those_of_mmengine(work_dir):
    cfg = toy_config(work_dir / 'theirs')
    cfg.param_scheduler = [WARMUP, COSINE]
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert rates_of(work_dir / 'ours', 21) == runner.message_hub.get_scalar('train/lr').data[0].tolist()


def test_schedules_end_with_a_truncated_run(work_dir):
    rates = rates_of(work_dir, 18)
    assert rates[13] == rates[14] == pytest.approx(0.01)
    expected = [0.01 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert rates[14:] == pytest.approx(expected)


def test_runs_shorter_than_the_warm_up_consist_of_it(work_dir, capsys):
    assert rates_of(work_dir, 5) == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01], abs=1e-9)
    assert 'CosineAnnealingLR is left out: it would begin at iteration 14 of 5' in capsys.readouterr().out


def test_schedules_in_iterations_stay(work_dir):
    runner = Runner.from_cfg(toy_config(work_dir))
    runner.param_schedulers = [dict(type='LinearLR', by_epoch=False, end=100)]
    fit_schedules(runner)
    assert runner.param_schedulers == [dict(type='LinearLR', by_epoch=False, end=100)]


@pytest.mark.parametrize(('accumulation', 'moved'), [(1, [1, 2, 3, 4, 5]), (3, [3])])
def test_targets_move_once_in_a_step_of_the_optimiser(accumulation, moved):
    model = nn.ModuleDict(dict(online=nn.Linear(1, 1)))
    model['target'] = ExponentialMovingAverage(model['online'], momentum=0.5)
    pace_averaged_models(SimpleNamespace(model=model, optim_wrapper=dict(accumulative_counts=accumulation)))
    changes = []
    for iteration in range(6):
        before = model['target'].module.weight.item()
        nn.init.constant_(model['online'].weight, before + iteration)
        model['target'].update_parameters(model['online'])
        changes.append(model['target'].module.weight.item() != before)
    assert [iteration for iteration, changed in enumerate(changes) if changed] == moved
