"""Sampler whose order does not depend on the number of processes and that can start in the middle of an epoch."""

from collections.abc import Iterator, Sized
from itertools import chain

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.dist import get_dist_info, sync_random_seed
from mmpretrain.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from mm_sop.datasets.seeded import SampleKey, TakesSeed

_CHUNK = 2**12


@DATA_SAMPLERS.register_module()
class ResumableSampler(Sampler):
    """Yields one epoch's keys ``(epoch, index)`` for a :class:`SeededDataset`.

    The permutation of an epoch depends on seed and epoch alone. Rank ``r`` of ``R`` takes its positions
    ``r, r + R, ...``, so that the ranks together see the same images in step ``t`` as one process with an ``R`` times
    larger batch. Positions after the last multiple of ``R`` are dropped; use it with ``drop_last=True``.

    Args:
        dataset (SeededDataset): It takes the seed of the sampler unless it has its own.
        shuffle (bool): Whether each epoch has another permutation.
        seed (int, optional): Seed of the permutations, the same on all ranks; MMEngine passes that of the runner.
            Defaults to a random seed that all ranks agree on.
        window (int, optional): For :class:`ShardedImages`: the shards are shuffled, and the images within as many
            consecutive ones, instead of all images. Few shards are then read at a time, and each whole, which suits
            disks and network file systems. Defaults to None, for all images.

    Raises:
        TypeError: The dataset expects indices instead of keys, or has no shards for a ``window``.
        ValueError: There are fewer images than processes, or ``window`` is out of range.

    Example:
        >>> sampler = ResumableSampler([None] * 4, seed=0)
        >>> keys = list(sampler)
        >>> sampler.skip(3)
        >>> list(sampler) == keys[3:]
        True
    """

    def __init__(
        self, dataset: Sized, shuffle: bool = True, seed: int | None = None, window: int | None = None
    ) -> None:
        if isinstance(dataset, BaseDataset):
            raise TypeError(
                f'ResumableSampler yields an epoch with every index, which {type(dataset).__name__} does not expect: '
                "wrap it, dataset=dict(type='SeededDataset', dataset=...)"
            )
        if window is not None and (window < 1 or not shuffle):
            raise ValueError(f'window={window} of ResumableSampler: expected at least 1, with shuffle=True')
        if window is not None and not hasattr(dataset, 'shard_ids'):
            raise TypeError(f'window={window} of ResumableSampler: the dataset has no shards, use ShardedImages')
        self.rank, self.world_size = get_dist_info()
        if len(dataset) < self.world_size:
            raise ValueError(f'{len(dataset)} images cannot be shared among {self.world_size} processes')
        self.dataset = dataset
        self.shuffle = shuffle
        self.window = window
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self.skipped = 0
        if isinstance(dataset, TakesSeed):
            dataset.set_default_seed(self.seed)

    def __iter__(self) -> Iterator[SampleKey]:
        epoch = self.epoch
        indices = self._order(epoch)[self.rank : len(self) * self.world_size : self.world_size][self.skipped :]
        self.skipped = 0
        # Not all at once, as a Python integer takes four times as much memory as one in the array.
        chunks = (indices[start : start + _CHUNK].tolist() for start in range(0, len(indices), _CHUNK))
        return (SampleKey(epoch, index) for index in chain.from_iterable(chunks))

    def _order(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng((self.seed, epoch))
        if not self.shuffle:
            return np.arange(len(self.dataset))
        if self.window is None:
            return generator.permutation(len(self.dataset))
        ids = self.dataset.shard_ids  # type: ignore[attr-defined]  # checked in the constructor
        by_shard = np.argsort(ids, kind='stable')
        shards = np.split(by_shard, np.flatnonzero(np.diff(ids[by_shard])) + 1)
        order = generator.permutation(len(shards))
        windows = (order[start : start + self.window] for start in range(0, len(order), self.window))
        return np.concatenate(
            [generator.permutation(np.concatenate([shards[number] for number in window])) for window in windows]
        )

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch."""
        return len(self.dataset) // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the zero-based epoch of the next iteration."""
        self.epoch = epoch

    def skip(self, num_samples: int) -> None:
        """Skip the first samples of this rank, 0 ... ``len(self)``, in the next iteration, and only there."""
        if not 0 <= num_samples <= len(self):
            raise ValueError(f'cannot skip {num_samples} samples: an epoch has {len(self)} on each rank')
        self.skipped = num_samples
