"""Logged values without a host synchronization in every iteration."""

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.runner import Runner
from mmpretrain.models import BaseClassifier
from mmpretrain.registry import HOOKS
from torch import Tensor

from mm_sop.datasets.labeled.folders import check_classes
from mm_sop.engine.hooks.base import PretrainHook
from mm_sop.engine.optimizers.pretrain_optim_wrapper import PretrainOptimWrapper
from mm_sop.utils.modules import unwrap_model


@HOOKS.register_module()
class DeferredRuntimeInfoHook(PretrainHook, RuntimeInfoHook):
    """MMEngine's RuntimeInfoHook with one copy from the device per log interval.

    The values of the model's outputs, and the gradient norm of a :class:`PretrainOptimWrapper`, stay tensors until
    they are logged or saved. The message hub then receives the same numbers in the same order as from MMEngine's hook.

    Args:
        interval (int, optional): Iterations of an epoch between copies. Defaults to None: that of the LoggerHook.
    """

    def __init__(self, interval: int | None = None) -> None:
        self.interval = interval
        self._pending: list[dict[str, Tensor | float]] = []

    def before_train(self, runner: Runner) -> None:
        """Reset, and refuse to validate a classifier on other classes than it is trained on."""
        super().before_train(runner)
        if isinstance(unwrap_model(runner.model), BaseClassifier) and runner.val_loop is not None:
            check_classes(dict(train=runner.train_dataloader.dataset, val=runner.val_dataloader.dataset))
        self._pending = []
        if self.interval is None:
            intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
            self.interval = min(intervals, default=10)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Collect the outputs, and pass them on when they are about to be logged."""
        values = dict(outputs or {})
        if isinstance(runner.optim_wrapper, PretrainOptimWrapper) and runner.optim_wrapper.grad_norm is not None:
            values['grad_norm'] = runner.optim_wrapper.grad_norm
        detached = {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}
        self._pending.append(detached)
        ends = self.end_of_epoch(runner.train_dataloader, batch_idx) or self.is_last_train_iter(runner)
        if ends or self.every_n_inner_iters(batch_idx, self.interval):
            self._flush(runner)

    def before_checkpoint(self, runner: Runner) -> None:
        """Pass on all values, so that the checkpoint contains them."""
        self._flush(runner)

    def _flush(self, runner: Runner) -> None:
        for values in to_numbers(self._pending):
            for name, value in values.items():
                runner.message_hub.update_scalar(f'train/{name}', value)
        self._pending = []


def to_numbers(records: list[dict[str, Tensor | float]]) -> list[dict[str, float]]:
    """Convert all tensors in several records to Python numbers with a single copy from the device.

    Args:
        records: Values by name; tensors have one element.

    Returns:
        The same records with the numbers that ``item()`` would give.
    """
    tensors = [value for record in records for value in record.values() if isinstance(value, Tensor)]
    # float64 represents every float32, bfloat16 and int32 exactly.
    copied = iter(torch.stack([tensor.reshape(()).double() for tensor in tensors]).tolist() if tensors else ())

    def convert(value: Tensor | float) -> float:
        if not isinstance(value, Tensor):
            return value
        number = next(copied)
        return number if value.is_floating_point() else int(number)

    return [{name: convert(value) for name, value in record.items()} for record in records]
