"""Schedules of the teacher's momentum and temperature."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from mm_sop.engine.optimizers.pretrain_optim_wrapper import accumulation_of
from mm_sop.functional.schedules import cosine_schedule, linear_schedule
from mm_sop.utils.modules import unwrap_model


@HOOKS.register_module()
class TeacherHook(Hook):
    """Moves the teacher towards the student after every optimizer step.

    Calls ``model.update_teacher(momentum)`` after the update of the student. The teacher does not move in iterations
    that only accumulate gradients. The momentum follows a cosine over optimizer steps (as in DINO, iBOT and SOP).

    Args:
        momentum (float): Weight of the old teacher at the first step, in [0, 1]. Defaults to 0.996.
        end_momentum (float): Value at the end of the cosine, in [0, 1]. Defaults to 1.0.
        lead (int): Steps >= 0 by which the cosine is ahead. With 1, the update after a step has the momentum of the
            next one, as in methods that move the teacher before the forward pass (ReSA). Defaults to 0.
    """

    def __init__(self, momentum: float = 0.996, end_momentum: float = 1.0, lead: int = 0) -> None:
        if not (0 <= momentum <= 1 and 0 <= end_momentum <= 1):
            raise ValueError(f'momenta must be in [0, 1], got momentum={momentum}, end_momentum={end_momentum}')
        if lead < 0:
            raise ValueError(f'lead must not be negative, got {lead}')
        self.momentum = momentum
        self.end_momentum = end_momentum
        self.lead = lead

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not runner.optim_wrapper.should_update():
            return
        accumulation = accumulation_of(runner.optim_wrapper)
        num_steps = -(-runner.max_iters // accumulation)
        step = runner.iter // accumulation + self.lead
        momentum = cosine_schedule(step, num_steps, self.momentum, self.end_momentum)
        unwrap_model(runner.model).update_teacher(momentum)  # type: ignore[operator]  # declared by the model's class
        runner.message_hub.update_scalar('train/teacher_momentum', momentum)


@HOOKS.register_module()
class TeacherTemperatureHook(Hook):
    """Changes the teacher's temperature linearly over the first iterations; it is constant afterwards.

    Calls ``model.set_teacher_temperature(value)``. Runs that are shorter than the change end with ``end``.

    Args:
        start (float): Temperature > 0 of the first iteration. Defaults to 0.04.
        end (float): Temperature > 0 after the change. Defaults to 0.04.
        warmup_epochs (float, optional): Length of the change in epochs. Defaults to 30 unless ``warmup_iters`` is
            given.
        warmup_iters (int, optional): Length of the change in iterations, instead of ``warmup_epochs``.
    """

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
        duration = self.warmup_iters
        if duration is None:
            duration = round(self.warmup_epochs * len(runner.train_dataloader))
        temperature = linear_schedule(runner.iter, min(duration, runner.max_iters), self.start, self.end)
        unwrap_model(runner.model).set_teacher_temperature(temperature)  # type: ignore[operator]  # as above
        runner.message_hub.update_scalar('train/teacher_temperature', temperature)
