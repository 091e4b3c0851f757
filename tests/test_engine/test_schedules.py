import math

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from testing.toy_training import toy_config

from mm_sop.functional.schedules import cosine_schedule, linear_schedule


def test_cosine_schedule_at_its_ends_and_in_the_middle():
    values = [cosine_schedule(step, 100, 0.996, 1.0) for step in range(100)]
    assert values[0] == pytest.approx(0.996, abs=1e-12)
    assert values[50] == pytest.approx(0.998, abs=1e-12)
    # DINO's convention: the end itself is one step after the last.
    assert values[99] == pytest.approx(1 - 0.004 * (1 + math.cos(math.pi * 0.99)) / 2, abs=1e-12)
    assert cosine_schedule(100, 100, 0.996, 1.0) == 1.0
    assert cosine_schedule(250, 100, 0.996, 1.0) == 1.0


def test_linear_schedule_reaches_its_end_with_the_last_step_of_the_change():
    assert [linear_schedule(step, 4, 0.04, 0.07) for step in range(6)] == pytest.approx(
        [0.04, 0.05, 0.06, 0.07, 0.07, 0.07], abs=1e-12
    )
    assert [linear_schedule(0, duration, 0.04, 0.07) for duration in (0, 1, 2)] == [0.07, 0.07, 0.04]


@pytest.mark.parametrize('call', [lambda: cosine_schedule(0, 0, 1, 2), lambda: cosine_schedule(-1, 5, 1, 2)])
def test_cosine_schedule_refuses_impossible_steps(call):
    with pytest.raises(ValueError, match='total_steps >= 1'):
        call()


def test_linear_schedule_refuses_negative_steps():
    with pytest.raises(ValueError, match='step >= 0'):
        linear_schedule(-1, 5, 1, 2)


def reference_lr(iteration, base, final, warmup, total):
    """Linear from 0 over the warm-up, then half a cosine, as SOP's release computes it."""
    if iteration < warmup:
        return base * iteration / (warmup - 1)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * (iteration - warmup) / (total - warmup)))


def test_schedule_config_follows_the_formulas_of_the_release(repository, work_dir):
    shipped = Config.fromfile(repository / 'configs/_base_/schedules/sop.py')
    cfg = toy_config(work_dir)
    cfg.optim_wrapper = shipped.optim_wrapper
    cfg.param_scheduler = shipped.param_scheduler
    cfg.train_cfg = shipped.train_cfg
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    wrapper = runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    schedulers = runner.build_param_scheduler(runner.param_schedulers)

    total, warmup = 700, 70
    rates, decays = [], []
    for _ in range(total):
        rates.append(wrapper.optimizer.param_groups[0]['lr'])
        decays.append([group['weight_decay'] for group in wrapper.optimizer.param_groups])
        for scheduler in schedulers:
            scheduler.step()

    expected = [reference_lr(iteration, 5e-4, 1e-6, warmup, total) for iteration in range(total)]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected), rtol=1e-5, atol=1e-12)
    assert rates[0] == pytest.approx(0, abs=1e-12)
    assert rates[warmup - 1] == rates[warmup] == pytest.approx(5e-4)
    expected = [0.4 - 0.36 * (1 + math.cos(math.pi * iteration / total)) / 2 for iteration in range(total)]
    torch.testing.assert_close(torch.tensor([decay for decay, _ in decays]), torch.tensor(expected))
    assert {none for _, none in decays} == {0.0}
