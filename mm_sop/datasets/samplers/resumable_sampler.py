"""Sampler whose order does not depend on the number of processes and that can start in the middle of an epoch."""

from collections.abc import Iterator, Sized

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.dist import get_dist_info, sync_random_seed
from mmpretrain.registry import DATA_SAMPLERS
from torch.utils.data import Sampler


@DATA_SAMPLERS.register_module()
class ResumableSampler(Sampler):
    """Yields one epoch's *draw numbers* ``epoch * len(dataset) + index`` for a :class:`SeededDataset`.

    The permutation of an epoch follows from seed and epoch alone. Rank ``r`` of ``R`` takes its positions
    ``r, r + R, ...``, so that the ranks together see the same pictures in step ``t`` as one process with an ``R`` times
    larger batch. Positions beyond the last multiple of ``R`` are left out; use it with ``drop_last=True``.

    Args:
        dataset (SeededDataset): The data set; without a seed of its own it is given that of the sampler.
        shuffle (bool): Permute the pictures anew in every epoch. Defaults to True.
        seed (int, optional): Seed of the permutations, the same on all ranks; MMEngine passes the one of the runner.
            Defaults to None, a random seed that all ranks agree on.

    Raises:
        TypeError: The data set expects indices instead of draw numbers.
        ValueError: There are fewer pictures than processes.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        if isinstance(dataset, BaseDataset):
            raise TypeError(
                f'ResumableSampler yields draw numbers, which {type(dataset).__name__} does not know: '
                "wrap it, dataset=dict(type='SeededDataset', dataset=...)"
            )
        self.rank, self.world_size = get_dist_info()
        if len(dataset) < self.world_size:
            raise ValueError(f'{len(dataset)} pictures cannot be shared among {self.world_size} processes')
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self.skipped = 0
        # MMEngine's `num_batch_per_epoch` shortens the data set; the draw numbers still refer to the whole one.
        self.draws_per_epoch = getattr(dataset, 'draws_per_epoch', len(dataset))
        if hasattr(dataset, 'set_default_seed'):
            dataset.set_default_seed(self.seed)

    def __iter__(self) -> Iterator[int]:
        indices = np.arange(len(self.dataset))
        if self.shuffle:
            indices = np.random.default_rng((self.seed, self.epoch)).permutation(indices)
        positions = slice(self.rank, len(self) * self.world_size, self.world_size)
        draws = indices[positions][self.skipped :] + self.epoch * self.draws_per_epoch
        self.skipped = 0
        return iter(draws.tolist())

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch."""
        return len(self.dataset) // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration.

        Args:
            epoch (int): Number of the epoch, from 0.
        """
        self.epoch = epoch

    def skip(self, num_samples: int) -> None:
        """Leave out the first samples of this rank in the next iteration, and only there.

        Args:
            num_samples (int): Samples that this rank has seen in the epoch, 0 ... ``len(self)``.
        """
        if not 0 <= num_samples <= len(self):
            raise ValueError(f'cannot skip {num_samples} samples: an epoch has {len(self)} on each rank')
        self.skipped = num_samples
