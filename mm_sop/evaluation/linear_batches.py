"""Batches of features for training linear classifiers."""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.dataset import BaseDataset, default_collate
from mmengine.dist import get_dist_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mm_sop.datasets.seeded_dataset import SeededDataset
from mm_sop.datasets.worker import pretrain_worker_init
from mm_sop.evaluation.cache import DTYPES, READOUTS, encode_arrays
from mm_sop.evaluation.protocol import EvaluationContext, EvaluationTransform
from mm_sop.models.utils.distributed import gather_in_sample_order

Batches = Iterator[tuple[dict[str, Tensor], Tensor]]
"""Features by readout and labels, batch by batch, on the encoder's device and equal on all processes."""


class CachedBatches:
    """Shuffled batches of features that are extracted already.

    Args:
        features: Features of all pictures by readout, (N, D).
        labels: Classes, (N,).
        rows: Rows that are used.
        size: Pictures in a batch; the last one of an epoch may be smaller.
        seed: Seed of the order.
        device: Where the batches go.
    """

    def __init__(
        self,
        features: dict[str, Tensor],
        labels: Tensor,
        rows: np.ndarray,
        size: int,
        seed: int = 0,
        device: torch.device | str = 'cpu',
    ) -> None:
        self.features = {readout: each[rows].to(device) for readout, each in features.items()}
        self.labels = labels[rows].to(device)
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return -(-len(self.labels) // self.size)

    def __call__(self, epoch: int) -> Batches:
        """Batches of an epoch."""
        order = torch.from_numpy(_order(len(self.labels), self.seed, epoch)).to(self.labels.device)
        for rows in order.split(self.size):
            yield {readout: each[rows] for readout, each in self.features.items()}, self.labels[rows]


class AugmentedBatches:
    """Shuffled batches of random crops and flips, encoded by all processes together.

    Args:
        context: What the evaluation runs with.
        dataset: Pictures, of which each epoch draws new views.
        labels: Classes, (N,).
        rows: Rows that are used.
        readouts: Features to give.
        size: Pictures in a batch of all processes; an incomplete one is left out.

    Raises:
        ValueError: The processes cannot share a batch equally, or there are fewer pictures.
    """

    def __init__(
        self,
        context: EvaluationContext,
        dataset: Dataset,
        labels: Tensor,
        rows: np.ndarray,
        readouts: Sequence[str],
        size: int,
    ) -> None:
        _, world_size = get_dist_info()
        if size % world_size or size > len(rows):
            raise ValueError(
                f'batch_size={size} must be a multiple of the {world_size} processes and at most the {len(rows)} '
                'pictures for training'
            )
        self.dataset = SeededDataset(augmented(dataset, context.transform), context.seed)
        self.context = context
        self.labels = labels.to(context.device)
        self.rows = rows
        self.readouts = readouts
        self.size = size

    def __len__(self) -> int:
        return len(self.rows) // self.size

    def __call__(self, epoch: int) -> Batches:
        """Batches of an epoch."""
        rank, world_size = get_dist_info()
        order = self.rows[_order(len(self.rows), self.context.seed, epoch)]
        batches = order[: len(self) * self.size].reshape(-1, self.size)
        draws = (epoch * len(self.dataset) + batches[:, rank::world_size]).tolist()
        loader = DataLoader(
            self.dataset,
            batch_sampler=draws,
            num_workers=self.context.num_workers,
            collate_fn=default_collate,
            worker_init_fn=pretrain_worker_init,
            generator=torch.Generator(),
        )
        for rows, batch in zip(batches, loader, strict=True):
            yield self._encode(batch), self.labels[torch.from_numpy(rows)]

    @torch.no_grad()
    def _encode(self, batch: dict) -> dict[str, Tensor]:
        names = list(dict.fromkeys(array for readout in self.readouts for array in READOUTS[readout]))
        share = encode_arrays(self.context.encoder, names, DTYPES[self.context.cache.dtype], batch)
        arrays = {name: gather_in_sample_order(each.to(self.context.device)) for name, each in share.items()}
        return {readout: torch.cat([arrays[name] for name in READOUTS[readout]], 1) for readout in self.readouts}


def augmented(dataset: BaseDataset, transform: EvaluationTransform) -> BaseDataset:
    """The same pictures in random views, see :func:`augmentation`."""
    views = copy.copy(dataset)
    views.pipeline = Compose(augmentation(transform, has_arrays='img' in dataset.get_data_info(0)))
    return views


def augmentation(transform: EvaluationTransform, has_arrays: bool) -> list[dict]:
    """Random crops of 8 to 100 % of the area and horizontal flips.

    Args:
        transform: Of the plain pictures, with the size of the crops.
        has_arrays: Whether samples have ``img``, and need no loading.
    """
    return [
        *([] if has_arrays else [dict(type='LoadPicture')]),
        dict(type='FastRandomResizedCrop', scale=transform.crop_size, crop_ratio_range=(0.08, 1.0)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackInputs'),
    ]


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
