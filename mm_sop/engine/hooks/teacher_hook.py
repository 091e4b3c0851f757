"""Schedules of the teacher: its momentum and its temperature."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from mm_sop.engine.utils import unwrap_model
from mm_sop.functional.schedules import cosine_schedule, linear_schedule


@HOOKS.register_module()
class TeacherHook(Hook):
    """Moves the teacher towards the student after every optimiser step.

    Calls ``model.update_teacher(momentum)`` with the student already updated. Iterations that only accumulate
    gradients leave the teacher alone, and the momentum follows a cosine over optimiser steps (as DINO, iBOT and SOP).

    Args:
        momentum (float): Share of the teacher that is kept at the first step, in [0, 1]. Defaults to 0.996.
        end_momentum (float): Share towards which the cosine leads. Defaults to 1.0.
        lead (int): Steps by which the cosine is ahead. With 1, the update after a step has the momentum of the next
            one, as in methods that move the teacher before the forward pass (ReSA). Defaults to 0.

    Raises:
        ValueError: A momentum or ``lead`` is out of range.
    """

    priority = 'NORMAL'

    def __init__(self, momentum: float = 0.996, end_momentum: float = 1.0, lead: int = 0) -> None:
        if not (0 <= momentum <= 1 and 0 <= end_momentum <= 1):
            raise ValueError(f'momenta must be in [0, 1], got momentum={momentum}, end_momentum={end_momentum}')
        if lead < 0:
            raise ValueError(f'lead must not be negative, got {lead}')
        self.momentum = momentum
        self.end_momentum = end_momentum
        self.lead = lead

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Update the teacher if the optimiser made a step."""
        if not runner.optim_wrapper.should_update():
            return
        accumulation = runner.optim_wrapper._accumulative_counts
        num_steps = -(-runner.max_iters // accumulation)
        step = runner.iter // accumulation + self.lead
        momentum = cosine_schedule(step, num_steps, self.momentum, self.end_momentum)
        unwrap_model(runner.model).update_teacher(momentum)
        runner.message_hub.update_scalar('train/teacher_momentum', momentum)


@HOOKS.register_module()
class TeacherTemperatureHook(Hook):
    """Changes the teacher's temperature linearly over the first iterations and keeps it constant afterwards.

    Calls ``model.set_teacher_temperature(value)``. Runs shorter than the change end with ``end``.

    Args:
        start (float): Temperature of the first iteration. Defaults to 0.04.
        end (float): Temperature after the change. Defaults to 0.04.
        warmup_epochs (float, optional): Length of the change in epochs. Defaults to None, that is 30 unless
            ``warmup_iters`` is given.
        warmup_iters (int, optional): Length in iterations instead.

    Raises:
        ValueError: A temperature is not positive, or both lengths are given.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        start: float = 0.04,
        end: float = 0.04,
        warmup_epochs: float | None = None,
        warmup_iters: int | None = None,
    ) -> None:
        if min(start, end) <= 0:
            raise ValueError(f'temperatures must be positive, got start={start}, end={end}')
        if warmup_epochs is not None and warmup_iters is not None:
            raise ValueError('give warmup_epochs or warmup_iters, not both')
        self.start = start
        self.end = end
        self.warmup_epochs = 30 if warmup_epochs is None else warmup_epochs
        self.warmup_iters = warmup_iters

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Set the temperature of this iteration."""
        duration = self.warmup_iters
        if duration is None:
            duration = round(self.warmup_epochs * len(runner.train_dataloader))
        temperature = linear_schedule(runner.iter, min(duration, runner.max_iters), self.start, self.end)
        unwrap_model(runner.model).set_teacher_temperature(temperature)
        runner.message_hub.update_scalar('train/teacher_temperature', temperature)
