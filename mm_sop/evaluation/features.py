"""Features of whole data sets, shared between processes."""

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from mmengine.dataset import default_collate
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, Subset

from mm_sop.datasets.worker import pretrain_worker_init
from mm_sop.models.utils.distributed import gather_in_sample_order
from mm_sop.models.utils.tokens import split_features, to_map

_SECONDS_BETWEEN_REPORTS = 30

READOUTS = ('global', 'patch')
"""``'global'``: [CLS] or the pooled map; ``'patch'``: the mean patch token."""


@torch.no_grad()
def extract_features(
    encode: Callable[[dict], dict[str, Tensor]],
    dataset: Dataset,
    batch_size: int = 256,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, Tensor]:
    """Encode the pictures of a data set, or one process's share of them.

    Process r of W takes the samples r, r + W, r + 2 W, ...; none is taken twice.

    Args:
        encode: Maps a collated batch to named features, (B, D) each.
        dataset: Data set whose pipeline ends with ``PackInputs`` and draws no random numbers.
        batch_size: Pictures encoded at once.
        num_workers: Worker processes that load pictures.
        rank: Number of this process.
        world_size: Number of processes.

    Returns:
        Features of the share by name, (n, D).

    Raises:
        ValueError: If there are fewer pictures than processes.
    """
    if len(dataset) < world_size:
        raise ValueError(f'{len(dataset)} pictures cannot be shared by {world_size} processes: give more pictures')
    loader = DataLoader(
        Subset(dataset, range(rank, len(dataset), world_size)),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=default_collate,
        worker_init_fn=pretrain_worker_init,
        # Else the loader draws from the global generator.
        generator=torch.Generator(),
    )
    parts, shown = [], time.perf_counter()
    for batch in loader:
        parts.append(encode(batch))
        if rank == 0 and time.perf_counter() - shown > _SECONDS_BETWEEN_REPORTS:
            shown = time.perf_counter()
            print_log(f'Encoded {len(parts)} of {len(loader)} batches for evaluation', logger='current')
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def gather_features(share: Tensor, total: int) -> Tensor:
    """Put the shares of :func:`extract_features` together on every process.

    Args:
        share: Features of this process, (n, D).
        total: Number N of pictures in the data set.

    Returns:
        Features in the order of the data set, (N, D).
    """
    rows = -(-total // get_world_size())
    padded = pad(share, (0, 0, 0, rows - len(share)))
    return gather_in_sample_order(padded)[:total]


def network_encoder(
    model: nn.Module, network: str = 'teacher', readouts: Sequence[str] = ('global',)
) -> Callable[[dict], dict[str, Tensor]]:
    """Encode batches with a network.

    Args:
        model: A model of MM-SOP, or any model of MMPretrain whose ``extract_feat`` gives tokens or feature maps.
        network: ``'teacher'`` or ``'student'`` where the model has both.
        readouts: Which of :data:`READOUTS` to give.

    Returns:
        Function for :func:`extract_features`.

    Raises:
        ValueError: If a readout is unknown.
    """
    unknown = set(readouts) - set(READOUTS)
    if unknown or not readouts:
        raise ValueError(f'readouts must be among {READOUTS}, got {tuple(readouts)}')
    return partial(_encode, model, network, tuple(readouts))


def has_teacher(model: nn.Module) -> bool:
    """Whether features of a teacher and of a student can be told apart."""
    return 'network' in inspect.signature(model.extract_feat).parameters


def encode_images(model: nn.Module, images: Tensor, network: str = 'teacher') -> tuple[Tensor, Tensor]:
    """Read out a network, as :func:`network_encoder` does.

    Args:
        model: The model.
        images: Normalised images, (B, C, H, W).
        network: ``'teacher'`` or ``'student'`` where the model has both.

    Returns:
        Global representation, (B, D), and local map, (B, D, h, w).
    """
    if has_teacher(model):
        return model.extract_feat(images, network=network)
    global_features, local = split_features(model.extract_feat(images))
    return global_features, to_map(local, images.shape[-2:])


def _encode(model: nn.Module, network: str, readouts: Sequence[str], batch: dict) -> dict[str, Tensor]:
    images = model.data_preprocessor(batch, False)['inputs']
    global_features, local_map = encode_images(model, images, network)
    by_readout = dict(zip(READOUTS, (global_features, local_map.mean((2, 3))), strict=True))
    return {readout: by_readout[readout].float() for readout in readouts}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set all modules to evaluation, and each of them back to its own mode on exit."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
