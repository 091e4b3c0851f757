"""Base classes of this project's hooks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mm_sop.datasets.randomness import isolated_random_state
from mm_sop.evaluation.features.extraction import evaluation_mode
from mm_sop.utils.modules import share_buffers


class PretrainHook(Hook):
    """Hook with the additional stages of :class:`PretrainLoop` and :class:`PretrainCheckpointHook`.

    Attributes:
        history_window: Number of latest logged values that the hook averages; checkpoints keep as many.
    """

    history_window = 0

    def before_checkpoint(self, runner: Runner) -> None:
        """Put state into the message hub before a checkpoint is saved; called on all processes."""

    def release(self, runner: Runner) -> None:
        """Release resources at the end of training, even if it failed."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block, all processes evaluate the network of the main process, without an effect on training."""
    share_buffers(model)
    with isolated_random_state(cuda=True), evaluation_mode(model):
        yield


class EvaluationHook(PretrainHook):
    """Hook that evaluates the network during training, and measures the time it takes.

    Attributes:
        started: When training began, as :func:`time.perf_counter` counts.
        spent: Seconds of evaluation since then.
        seconds: Those of the last evaluation.
    """

    # After the teacher's update and the logger, before checkpoints.
    priority = 'LOW'

    def before_train(self, runner: Runner) -> None:
        self.started, self.spent = time.perf_counter(), 0.0

    @contextmanager
    def timed_evaluation(self, model: nn.Module) -> Iterator[None]:
        """Apply :func:`evaluating` within the block, and measure its duration."""
        begin = _finish_time()
        with evaluating(model):
            yield
        self.seconds = _finish_time() - begin
        self.spent += self.seconds

    def publish(self, runner: Runner, values: dict[str, float], step: int) -> float:
        """Pass results to message hub and visualizer, and return the fraction of the run spent on evaluation."""
        for name, value in values.items():
            runner.message_hub.update_scalar(name, value)
        runner.visualizer.add_scalars(values, step=step, file_path=f'{runner.timestamp}.json')
        return self.spent / max(time.perf_counter() - self.started, 1e-9)


def _finish_time() -> float:
    """The time at which the device has finished all work so far."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
