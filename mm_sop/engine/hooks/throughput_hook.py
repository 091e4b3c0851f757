"""Measures the speed of training and whether data loading limits it."""

import resource
from time import perf_counter

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Logs images per second of all processes, the fraction of time spent waiting for data, and memory.

    Validation, checkpoints and logging do not count. Warns once if training waits for its data. Requires
    :class:`PretrainLoop`, which measures the waiting time. MMEngine logs the peak memory on CUDA; on the CPU ``memory``
    is the peak of the resident memory of the process, in MiB.

    Args:
        interval (int): Iterations of an epoch between measurements; a divisor of the LoggerHook's. Defaults to 50.
        max_data_wait (float): Fraction of waiting time above which to warn, in [0, 1]. Defaults to 0.3.
    """

    def __init__(self, interval: int = 50, max_data_wait: float = 0.3) -> None:
        if interval < 1 or not 0 <= max_data_wait <= 1:
            raise ValueError(f'expected interval >= 1 and max_data_wait in [0, 1], got {interval} and {max_data_wait}')
        self.interval = interval
        self.max_data_wait = max_data_wait

    def before_train(self, runner: Runner) -> None:
        """Start the first interval, in which waiting is normal because workers start to load."""
        self._warns = self._has_warned = False
        self._reset(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._started = perf_counter()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._step_seconds += perf_counter() - self._started
        self._num_images += len(data_batch['data_samples'])
        if not self.every_n_inner_iters(batch_idx, self.interval):
            return
        wait = runner.train_loop.data_wait - self._wait_before
        seconds = wait + self._step_seconds
        hub = runner.message_hub
        hub.update_scalar('train/images_per_second', self._num_images * get_world_size() / seconds)
        hub.update_scalar('train/data_wait', wait / seconds)
        if not torch.cuda.is_available():
            # Linux reports kB.
            hub.update_scalar('train/memory', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        if self._warns and wait / seconds > self.max_data_wait:
            self._has_warned = True
            runner.logger.warning(
                f'Training waits for data {wait / seconds:.0%} of the time. Raise train_dataloader.num_workers '
                f'(now {runner.train_dataloader.num_workers} for each process), store the images smaller (shorter side '
                '256), or lighten the pipeline; reported once.'
            )
        self._warns = not self._has_warned
        self._reset(runner)

    def _reset(self, runner: Runner) -> None:
        self._num_images = 0
        self._step_seconds = 0.0
        self._wait_before = runner.train_loop.data_wait
