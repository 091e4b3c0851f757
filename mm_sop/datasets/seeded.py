"""Dataset wrapper that makes every sample a function of seed, epoch and index."""

from contextlib import nullcontext
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from mmpretrain.registry import DATASETS
from torch.utils.data import Dataset, get_worker_info

from mm_sop.datasets.randomness import isolated_random_state, seed_everything_from
from mm_sop.datasets.transforms.loading import UnreadableImageError
from mm_sop.utils.failures import UserError
from mm_sop.utils.files import printable

MAX_REPLACEMENTS = 20


class SampleKey(NamedTuple):
    """A sample of an epoch: worker processes do not know the epoch, so it travels with the index."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class SizedDataset(Protocol):
    """What wrappers need of a dataset; MMEngine's datasets offer more, such as ``get_data_info``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


@runtime_checkable
class TakesSeed(Protocol):
    """A dataset that takes the seed of its sampler unless it has its own."""

    def set_default_seed(self, seed: int) -> None: ...


class AllUnreadableError(UserError, RuntimeError):
    """So many images in a row are unreadable that single damaged files are not the reason."""


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Runs the pipeline of a dataset with random generators seeded from ``(seed, epoch, index)``.

    Samples are therefore the same for any number of workers and processes, and after a resumption. The generators of
    the calling process do not change.

    An unreadable image (:class:`UnreadableImageError`) is replaced by another one, drawn from the same random stream.
    ``data_samples.unreadable`` lists the replaced ones as ``(path, reason)``; usually it is empty.

    Args:
        dataset (dict | Dataset): Any dataset whose pipeline ends with ``PackInputs``.
        seed (int, optional): Seed of all samples. Defaults to that of the :class:`ResumableSampler`, to which MMEngine
            passes the seed of the runner.
        max_unreadable (float): Fraction of unreadable images, in [0, 1], that a run tolerates. :class:`BadImageHook`,
            which collects them from all processes, enforces it.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = tempfile.mkdtemp()
        >>> Image.linear_gradient('L').save(f'{folder}/0.png')
        >>> pipeline = [
        ...     dict(type='mmpretrain.LoadImage'),
        ...     dict(type='mmpretrain.FastRandomResizedCrop', scale=8),
        ...     dict(type='mmpretrain.PackInputs'),
        ... ]
        >>> dataset = SeededDataset(dict(type='UnlabeledImages', data_root=folder, pipeline=pipeline), seed=0)
        >>> first, same, other = (dataset[SampleKey(epoch, 0)]['inputs'] for epoch in (0, 0, 1))
        >>> bool((first == same).all()), bool((first == other).all())
        (True, False)
    """

    def __init__(self, dataset: dict | SizedDataset, seed: int | None = None, max_unreadable: float = 0.01) -> None:
        if not 0 <= max_unreadable <= 1:
            raise ValueError(f'max_unreadable={max_unreadable} must be in [0, 1]')
        self.dataset: SizedDataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed = seed
        self.max_unreadable = max_unreadable

    @property
    def metainfo(self) -> dict:
        """Meta information of the wrapped dataset."""
        return self.dataset.metainfo  # type: ignore[attr-defined]  # which has it wherever it is asked for

    def full_init(self) -> None:
        """Initialize a wrapped dataset that was built with ``lazy_init=True``."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()

    @property
    def shard_ids(self) -> np.ndarray:
        """Numbers of the shards of the images, if the wrapped dataset has shards."""
        return self.dataset.shard_ids  # type: ignore[attr-defined]  # without them, this dataset has none either

    def set_default_seed(self, seed: int) -> None:
        """Set the seed unless one was given."""
        if self.seed is None:
            self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey | int) -> dict:
        """Load one sample by epoch and index, as :class:`ResumableSampler` yields them; an index means epoch 0.

        Raises:
            RuntimeError: There is no seed.
            AllUnreadableError: Neither the image nor 20 replacements are readable.
        """
        if self.seed is None:
            raise RuntimeError('SeededDataset has no seed: give seed=... or load it through a ResumableSampler')
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if hasattr(self.dataset, 'set_epoch'):
            self.dataset.set_epoch(epoch)
        # A worker process has no other random stream to protect.
        with isolated_random_state() if get_worker_info() is None else nullcontext():
            seed_everything_from(self.seed, epoch, index)
            return self._load_readable(index)

    def _load_readable(self, index: int) -> dict:
        unreadable: list[tuple[str, str]] = []
        while len(unreadable) <= MAX_REPLACEMENTS:
            try:
                sample = self.dataset[index]
            except UnreadableImageError as error:
                unreadable.append((error.path, error.reason))
                index = np.random.randint(len(self))
            else:
                sample['data_samples'].set_metainfo(dict(unreadable=tuple(unreadable)))
                return sample
        reasons = '\n'.join(printable(f'  {path}: {reason}') for path, reason in unreadable)
        raise AllUnreadableError(f'Is the folder gone? {len(unreadable)} images in a row cannot be read:\n{reasons}')
