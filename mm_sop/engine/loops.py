"""Training loop that can start at any iteration."""

import logging
from collections.abc import Iterator
from itertools import islice
from time import perf_counter

from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmpretrain.registry import LOOPS
from torch import nn
from torch.utils.data import BatchSampler, DataLoader

from mm_sop.datasets.randomness import isolated_random_state, seed_everything_from
from mm_sop.datasets.samplers import ResumableSampler
from mm_sop.utils.failures import LaunchError
from mm_sop.utils.modules import batch_size_of, share_buffers


@LOOPS.register_module()
class PretrainLoop(EpochBasedTrainLoop):
    """Epoch-based training whose position is the number of finished iterations.

    It can resume in the middle of an epoch: a :class:`ResumableSampler` skips seen samples without loading them. If
    batch size, number of processes or dataset have changed, :func:`adapt_checkpoint` translates the position of a
    checkpoint into iterations of the new run. Data loading and validation do not affect the random state of training.
    Hooks are released at the end even if training fails, see :class:`PretrainHook`.

    Args:
        max_epochs (int, optional): Length of the run in epochs.
        max_iters (int, optional): Length in iterations. If both are given, the run ends with whichever comes first.
        runner, dataloader, **kwargs: As for :class:`EpochBasedTrainLoop`, such as ``val_interval``.

    Raises:
        ValueError: Neither length is given.
        LaunchError: The dataset is smaller than one global batch.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        **kwargs,
    ) -> None:
        if max_epochs is None and max_iters is None:
            raise ValueError('PretrainLoop needs train_cfg.max_epochs or train_cfg.max_iters')
        super().__init__(runner, dataloader, max_epochs or 1, **kwargs)
        if len(self.dataloader) == 0:
            batch_size, world_size = batch_size_of(self.dataloader), get_world_size()
            raise LaunchError(
                f'{len(self.dataloader.dataset)} images do not fill one global batch of {batch_size * world_size} '
                f'({batch_size} x {world_size} processes): lower train_dataloader.batch_size or add images'
            )
        if max_iters is not None:
            self._max_iters: int = max_iters if max_epochs is None else min(max_iters, self._max_iters)
            self._max_epochs = -(-self._max_iters // len(self.dataloader))
        self.data_wait = 0.0
        """Seconds spent waiting for data so far."""

    def run(self) -> nn.Module:
        """Train from the current position to the end, and return the model."""
        self._epoch = self._iter // len(self.dataloader)
        if self._iter >= self._max_iters:
            print_log(
                f'Nothing is left to train: {self._iter} of {self._max_iters} iterations are finished. To go on, raise '
                'train_cfg.max_epochs or train_cfg.max_iters',
                logger='current',
                level=logging.WARNING,
            )
        try:
            self.runner.call_hook('before_train')
            while self._iter < self._max_iters and not self.stop_training:
                self.run_epoch()
                self._decide_current_val_interval()
                is_due = self._epoch % self.val_interval == 0 or self._iter >= self._max_iters
                if self.runner.val_loop is not None and self._epoch >= self.val_begin and is_due:
                    share_buffers(self.runner.model)
                    with isolated_random_state(cuda=True):
                        self.runner.val_loop.run()
            self.runner.call_hook('after_train')
        finally:
            self.runner.call_hook('release')
        return self.runner.model

    def run_epoch(self) -> None:
        """Train to the end of the current epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        first = self._iter - self._epoch * len(self.dataloader)
        last = min(len(self.dataloader), first + self._max_iters - self._iter)
        batches = self._open_batches(first)
        for idx in range(first, last):
            started = perf_counter()
            batch = next(batches)
            self.data_wait += perf_counter() - started
            self.run_iter(idx, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _open_batches(self, num_seen: int) -> Iterator[dict]:
        """Iterate over the batches of the current epoch after the first ``num_seen``."""
        sampler = self.dataloader.sampler
        # Other batch samplers, such as those that group by aspect ratio, may drop or delay images.
        skips = isinstance(sampler, ResumableSampler) and type(self.dataloader.batch_sampler) is BatchSampler
        if num_seen and skips:
            sampler.skip(num_seen * self.dataloader.batch_size)
        # Opening a loader draws the seed of its workers, which differs between epochs.
        with isolated_random_state():
            seed_everything_from(self.runner.seed, self._epoch, get_rank())
            batches = iter(self.dataloader)
        if not num_seen or skips:
            return batches
        print_log(
            f'{type(sampler).__name__} with {type(self.dataloader.batch_sampler).__name__} cannot skip: {num_seen} '
            'batches are loaded and discarded; use ResumableSampler without another batch_sampler',
            logger='current',
            level=logging.WARNING,
        )
        return islice(batches, num_seen, None)
