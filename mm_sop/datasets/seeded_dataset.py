"""Data set wrapper that makes every sample a function of seed, epoch and index."""

from contextlib import nullcontext

import numpy as np
from mmpretrain.registry import DATASETS
from torch.utils.data import Dataset, get_worker_info

from mm_sop.datasets.files import printable
from mm_sop.datasets.randomness import isolated_random_state, seed_everything_from
from mm_sop.datasets.transforms.loading import UnreadableImageError

MAX_REPLACEMENTS = 20


class AllUnreadableError(RuntimeError):
    """So many pictures in a row cannot be read that it is not a matter of single files."""


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Runs the pipeline of a data set with generators seeded from ``(seed, epoch, index)``.

    Samples are therefore the same for any number of workers and processes, and after a resumption. They are asked for
    by *draw number* ``epoch * len(self) + index``, as :class:`ResumableSampler` yields them, because worker processes
    know no epoch. The generators of the calling process are left as they were.

    A picture that cannot be read (:class:`UnreadableImageError`) is replaced by another one, drawn from the same random
    stream. ``data_samples.unreadable`` lists the replaced ones as ``(path, reason)``; it is empty in the normal case.

    Args:
        dataset (dict | Dataset): Any data set whose pipeline ends with ``PackInputs``.
        seed (int, optional): Seed of all samples. Defaults to None, that of the :class:`ResumableSampler`, which
            MMEngine gives the runner's.
        max_unreadable (float): Share of unreadable pictures, 0 ... 1, that a run puts up with. It is not enforced
            here but by :class:`BadImageHook`, which sees all processes. Defaults to 0.01.
    """

    def __init__(self, dataset: dict | Dataset, seed: int | None = None, max_unreadable: float = 0.01) -> None:
        if not 0 <= max_unreadable <= 1:
            raise ValueError(f'max_unreadable={max_unreadable} is no share: expected 0 ... 1')
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed = seed
        self.max_unreadable = max_unreadable

    @property
    def metainfo(self) -> dict:
        """Meta information of the wrapped data set."""
        return self.dataset.metainfo

    @property
    def draws_per_epoch(self) -> int:
        """Distance between the draw numbers of one picture in two successive epochs."""
        return len(self)

    def full_init(self) -> None:
        """Read the annotations of a wrapped data set that was built with ``lazy_init=True``."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()

    def set_default_seed(self, seed: int) -> None:
        """Set the seed unless one was given.

        Args:
            seed (int): The seed.
        """
        if self.seed is None:
            self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: int) -> dict:
        """Load one sample.

        Args:
            draw (int): ``epoch * len(self) + index``.

        Returns:
            dict: ``inputs`` and ``data_samples`` as packed by the pipeline.

        Raises:
            RuntimeError: There is no seed.
            AllUnreadableError: Neither the image nor 20 replacements could be read.
        """
        if self.seed is None:
            raise RuntimeError('SeededDataset has no seed: give seed=... or load it through a ResumableSampler')
        epoch, index = divmod(draw, len(self))
        if hasattr(self.dataset, 'set_epoch'):
            self.dataset.set_epoch(epoch)
        # A worker process has no other random stream to protect.
        with isolated_random_state() if get_worker_info() is None else nullcontext():
            seed_everything_from(self.seed, epoch, index)
            return self._load_readable(index)

    def _load_readable(self, index):
        unreadable = []
        while len(unreadable) <= MAX_REPLACEMENTS:
            try:
                sample = self.dataset[index]
            except UnreadableImageError as error:
                unreadable.append((error.path, error.reason))
                index = np.random.randint(len(self))
            else:
                sample['data_samples'].set_metainfo(dict(unreadable=tuple(unreadable)))
                return sample
        listing = '\n'.join(printable(f'  {path}: {reason}') for path, reason in unreadable)
        raise AllUnreadableError(f'Is the folder gone? {len(unreadable)} pictures in a row cannot be read:\n{listing}')
