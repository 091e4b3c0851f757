"""Feature extraction for whole datasets, divided among the processes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from mmengine.dataset import BaseDataset, default_collate
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Subset

from mm_sop.datasets.worker import pretrain_worker_init
from mm_sop.models.utils.tokens import split_features, to_map
from mm_sop.utils.distributed import gather_in_sample_order

MODEL_READOUTS = ('global', 'patch')
"""What :func:`network_encoder` gives: [CLS] or the pooled map, and the mean patch token."""

_SECONDS_BETWEEN_REPORTS = 30


@torch.no_grad()
def extract_features(
    encode: Callable[[dict], dict[str, Tensor]],
    dataset: BaseDataset,
    batch_size: int = 256,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, Tensor]:
    """Encode the images of a dataset, or those of one process.

    Process r of W takes the samples r, r + W, r + 2 W, ...; no sample is repeated.

    Args:
        encode: Maps a collated batch to named features, (B, D) each.
        dataset: Dataset whose pipeline ends with ``PackInputs`` and draws no random numbers.
        batch_size: Images encoded at once.
        num_workers: Worker processes that load images.
        rank: Rank of this process.
        world_size: Number of processes.

    Returns:
        Features of this process's images by name, (n, D).

    Raises:
        ValueError: There are fewer images than processes.
    """
    check_num_images(dataset, world_size)
    loader = DataLoader(
        Subset(dataset, range(rank, len(dataset), world_size)),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=default_collate,
        worker_init_fn=pretrain_worker_init,
        # Without its own, the loader draws from the global generator.
        generator=torch.Generator(),
    )
    parts, shown = [], time.perf_counter()
    for batch in loader:
        parts.append(encode(batch))
        if rank == 0 and time.perf_counter() - shown > _SECONDS_BETWEEN_REPORTS:
            shown = time.perf_counter()
            print_log(f'Encoded {len(parts)} of {len(loader)} batches for evaluation', logger='current')
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def check_num_images(dataset: BaseDataset, world_size: int) -> None:
    """Raise a ValueError if there are fewer images than processes."""
    if len(dataset) < world_size:
        raise ValueError(f'{len(dataset)} images cannot be shared by {world_size} processes: give more images')


def gather_features(features: Tensor, total: int) -> Tensor:
    """Gather what each process got from :func:`extract_features`, on every process.

    Args:
        features: Features of this process, (n, D).
        total: Number N of images in the dataset.

    Returns:
        Features in the order of the dataset, (N, D).
    """
    rows = -(-total // get_world_size())
    padded = pad(features, (0, 0, 0, rows - len(features)))
    return gather_in_sample_order(padded)[:total]


def network_encoder(
    model: BaseModel, network: str = 'teacher', readouts: Sequence[str] = ('global',)
) -> Callable[[dict], dict[str, Tensor]]:
    """Make the function by which a model encodes batches.

    Args:
        model: A model of MM-SOP, or any model of MMPretrain whose ``extract_feat`` gives tokens or feature maps.
        network: ``'teacher'`` or ``'student'`` where the model has both.
        readouts: Which of :data:`MODEL_READOUTS` to give.

    Returns:
        Function for :func:`extract_features`.

    Raises:
        ValueError: A readout is unknown.
    """
    unknown = set(readouts) - set(MODEL_READOUTS)
    if unknown or not readouts:
        raise ValueError(f'readouts must be among {MODEL_READOUTS}, got {tuple(readouts)}')
    return partial(_encode, model, network, tuple(readouts))


def has_teacher(model: BaseModel) -> bool:
    """Whether the ``extract_feat`` of a model takes the network, ``'teacher'`` or ``'student'``."""
    return getattr(model, 'has_teacher', False)


def encode_images(model: BaseModel, images: Tensor, network: str = 'teacher') -> tuple[Tensor, Tensor]:
    """Encode images with a model.

    Args:
        model: As for :func:`network_encoder`.
        images: Normalized images, (B, C, H, W).
        network: ``'teacher'`` or ``'student'`` where the model has both.

    Returns:
        Global representation, (B, D), and local map, (B, D, h, w).
    """
    if has_teacher(model):
        return model.extract_feat(images, network=network)
    global_features, local = split_features(model.extract_feat(images))
    return global_features, to_map(local, images.shape[-2:])


def _encode(model: BaseModel, network: str, readouts: Sequence[str], batch: dict) -> dict[str, Tensor]:
    images = model.data_preprocessor(batch, False)['inputs']
    global_features, local_map = encode_images(model, images, network)
    by_readout = {'global': global_features, 'patch': local_map.mean((2, 3))}
    return {readout: by_readout[readout].float() for readout in readouts}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set all modules to evaluation mode, and restore the mode of each on exit."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
