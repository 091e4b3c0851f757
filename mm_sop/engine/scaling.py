"""Fits learning rate, schedules and moving averages to the batch and the length of a run."""

import math

from mmengine.dist import get_world_size
from mmengine.model import BaseAveragedModel
from mmengine.runner import Runner

from mm_sop.engine.utils import unwrap_model


def scale_learning_rate(runner: Runner) -> None:
    """Scale the learning rate linearly to the global batch, if the config's ``auto_scale_lr`` is enabled.

    MMEngine's own scaling leaves gradient accumulation out. The config itself keeps its value.

    Args:
        runner: Runner whose optimiser is not built yet.
    """
    scaling, runner.auto_scale_lr = runner.auto_scale_lr, None
    if not scaling or not scaling.get('enable') or not isinstance(runner.optim_wrapper, dict):
        return
    accumulation = runner.optim_wrapper.get('accumulative_counts', 1)
    batch_size = runner._train_dataloader['batch_size']
    global_batch = batch_size * get_world_size() * accumulation
    optimizer = runner.optim_wrapper['optimizer']
    base, base_batch = optimizer['lr'], scaling['base_batch_size']
    optimizer['lr'] = base * global_batch / base_batch
    runner.logger.info(
        f'Learning rate {optimizer["lr"]:.4g} = {base:.4g} x {global_batch} / {base_batch}; global batch '
        f'{global_batch} = {batch_size} pictures x {get_world_size()} processes x {accumulation} accumulated'
    )


def pace_averaged_models(runner: Runner) -> None:
    """Let target networks that move within ``loss()``, as MMPretrain's do, move once in a step of the optimiser.

    Without it gradients that are accumulated into one step would come from several target networks.

    Args:
        runner: Runner with its model built, and with an optimiser wrapper that is not.
    """
    wrapper = runner.optim_wrapper
    accumulation = wrapper.get('accumulative_counts', 1) if isinstance(wrapper, dict) else 1
    for module in unwrap_model(runner.model).modules():
        if isinstance(module, BaseAveragedModel) and module.interval == 1:
            module.interval = accumulation


def fit_schedules(runner: Runner) -> None:
    """Let schedules that are given in epochs and change in every iteration end with the run at the latest.

    Runs that are shorter than a warm-up, as in a quick trial, then consist of the warm-up; schedules that would begin
    after the end are left out.

    Args:
        runner: Runner whose schedulers are not built yet.
    """
    if not isinstance(runner.param_schedulers, list):
        return
    fitted = [_fit(dict(schedule), runner) for schedule in runner.param_schedulers]
    runner.param_schedulers = [schedule for schedule in fitted if schedule.get('begin', 0) < runner.max_iters]
    for schedule in fitted:
        if schedule not in runner.param_schedulers:
            runner.logger.warning(
                f'{schedule["type"]} is left out: it would begin at iteration {schedule["begin"]} of {runner.max_iters}'
            )


def _fit(schedule: dict, runner: Runner) -> dict:
    """Count the iterations of one schedule."""
    if not schedule.get('convert_to_iter_based') or 'T_max' in schedule:
        return schedule
    del schedule['convert_to_iter_based']
    per_epoch = len(runner.train_dataloader)
    begin, end = schedule.get('begin', 0) * per_epoch, schedule.get('end', math.inf) * per_epoch
    return dict(schedule, by_epoch=False, begin=int(begin), end=int(min(end, runner.max_iters)))
