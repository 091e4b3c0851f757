"""Features: which representations of a network, by name, and their extraction for whole datasets by all processes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from mmengine.dataset import BaseDataset, default_collate
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, one_hot, pad
from torch.utils.data import DataLoader, Subset

from mm_sop.datasets.worker import pretrain_worker_init
from mm_sop.encoders.encoder import Encoder
from mm_sop.functional.whitening import generalized_mean
from mm_sop.models.utils.readout import Readout, read_out
from mm_sop.models.utils.tokens import split_features, to_map
from mm_sop.utils.distributed import gather_in_sample_order

READOUTS = {
    'global': ('global',),
    'patch': ('patch',),
    'global+patch': ('global', 'patch'),
    'last4': ('block4', 'block3', 'block2', 'block1'),
}
"""Arrays that are concatenated for a readout: ``'global'`` is [CLS] or the pooled map, ``'patch'`` the mean patch token
of the last block, ``'last4'`` the [CLS] tokens or pooled maps of the last four blocks or stages."""

DESCRIPTOR_PARTS = ('global', 'patch', 'gem')
"""Arrays that a descriptor may consist of; ``'gem'`` is the generalized mean of the last map."""

DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16)
"""Types in which networks compute and features are stored."""

MODEL_READOUTS = ('global', 'patch')
"""What :func:`network_encoder` gives: [CLS] or the pooled map, and the mean patch token."""

_SECONDS_BETWEEN_REPORTS = 30
# A multiple of the patch sizes and strides of most networks; the shape of a local map may be ambiguous otherwise.
_MULTIPLE = 16


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
        dataset: Dataset whose pipeline ends with ``PackInputs`` and draws no random numbers. It has at least one image
            for each process.

    Returns:
        Features of this process's images by name, (n, D).
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
    """Gather what each process got from :func:`extract_features`, (n, D), on every process.

    Returns:
        Features in the order of the dataset, (N, D) for a ``total`` of N images.
    """
    rows = -(-total // get_world_size())
    padded = pad(features, (0, 0, 0, rows - len(features)))
    return gather_in_sample_order(padded)[:total]


def network_encoder(
    model: BaseModel, network: str = 'teacher', readouts: Sequence[str] = ('global',)
) -> Callable[[dict], dict[str, Tensor]]:
    """Make the function for :func:`extract_features` by which a model encodes batches.

    Args:
        model: A model of MM-SOP, or any model of MMPretrain whose ``extract_feat`` gives tokens or feature maps.
        network: ``'teacher'`` or ``'student'`` where the model has both.
        readouts: Which of :data:`MODEL_READOUTS` to give.

    Raises:
        ValueError: A readout is unknown.
    """
    if not readouts or set(readouts) - set(MODEL_READOUTS):
        raise ValueError(f'readouts must be among {MODEL_READOUTS}, got {tuple(readouts)}')

    def encode(batch: dict) -> dict[str, Tensor]:
        images = model.data_preprocessor(batch, False)['inputs']
        global_features, local_map = encode_images(model, images, network)
        by_readout = {'global': global_features, 'patch': local_map.mean((2, 3))}
        return {readout: by_readout[readout].float() for readout in readouts}

    return encode


def has_teacher(model: BaseModel) -> bool:
    """Whether the ``extract_feat`` of a model takes the network, ``'teacher'`` or ``'student'``."""
    return getattr(model, 'has_teacher', False)


def encode_images(model: BaseModel, images: Tensor, network: str = 'teacher') -> tuple[Tensor, Tensor]:
    """Encode normalized images, (B, C, H, W), with a model as for :func:`network_encoder`.

    Returns:
        Global representation, (B, D), and local map, (B, D, h, w).
    """
    if has_teacher(model):
        return model.extract_feat(images, network=network)
    global_features, local = split_features(model.extract_feat(images))
    return global_features, to_map(local, images.shape[-2:])


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


def resize_by(images: Tensor, scale: float, multiple: int = _MULTIPLE) -> Tensor:
    """Resize images, (B, C, H, W), to sides that are multiples of ``multiple``, at least twice as large."""
    size = [max(round(scale * side / multiple), 2) * multiple for side in images.shape[2:]]
    if size == list(images.shape[2:]):
        return images
    return interpolate(images, size=size, mode='bilinear', align_corners=False, antialias=scale < 1)


def arrays_of(readouts: Sequence[str]) -> list[str]:
    """Names of the arrays that several readouts consist of, each once."""
    return list(dict.fromkeys(array for readout in readouts for array in READOUTS[readout]))


def named_array(readout: Readout, name: str) -> Tensor:
    """One array, (B, D): one of :data:`DESCRIPTOR_PARTS`, or ``'block1'``, ``'block2'``, ...; block 1 is the last."""
    if name == 'global':
        return readout.global_features
    if name == 'patch':
        return readout.local_map.mean((2, 3))
    if name == 'gem':
        return generalized_mean(readout.local_map)
    return readout.summaries[-int(name.removeprefix('block'))]


def encode_arrays(encoder: Encoder, names: Sequence[str], dtype: torch.dtype, batch: dict) -> dict[str, Tensor]:
    """Encode a collated batch into arrays, (B, D), fp32, on the CPU, by names as for :func:`named_array`.

    With ``torch.bfloat16`` as ``dtype`` the network computes under autocast.
    """
    with torch.autocast(next(encoder.parameters()).device.type, torch.bfloat16, dtype == torch.bfloat16):
        readout = encoder.read(batch, _num_blocks(names))
        arrays = {name: named_array(readout, name) for name in names}
    return {name: array.float().cpu() for name, array in arrays.items()}


@torch.no_grad()
def distinct_readouts(encoder: Encoder, readouts: Sequence[str], crop_size: int) -> list[str]:
    """Select the :data:`READOUTS` that an encoder has and that differ from each other, for images of a size.

    Of some convolutional networks fewer than four stages are known, and the pooled map equals the mean patch.
    """
    device = next(encoder.parameters()).device
    probe = torch.linspace(-1, 1, 3 * crop_size**2, device=device).view(1, 3, crop_size, crop_size)
    selected: dict[str, list[Tensor]] = {}
    for readout in readouts:
        names = READOUTS[readout]
        try:
            output = read_out(encoder.network, probe, _num_blocks(names))
        except ValueError:
            continue
        arrays: list[Tensor] = []
        for array in (named_array(output, name) for name in names):
            if not any(_are_equal(array, earlier) for earlier in arrays):
                arrays.append(array)
        if not any(len(arrays) == len(old) and all(map(_are_equal, arrays, old)) for old in selected.values()):
            selected[readout] = arrays
    return list(selected)


def _are_equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.allclose(left, right, atol=1e-5)


def _num_blocks(names: Sequence[str]) -> int:
    return max((int(name.removeprefix('block')) for name in names if name.startswith('block')), default=1)


def raw_pixels(images: Tensor, size: int = 16) -> Tensor:
    """Pixels of the image downscaled to s x s minus its mean color: uint8, (B, C, H, W), to fp32, (B, C s s)."""
    pixels = adaptive_avg_pool2d(images.float(), size)
    return (pixels - pixels.mean((2, 3), keepdim=True)).flatten(1)


def color_histogram(images: Tensor, levels: int = 4) -> Tensor:
    """Joint color histogram of the center half of uint8 images, (B, C, H, W), where the object usually is.

    Returns:
        Fraction of the pixels in every bin of equal width, fp32, (B, levels ** C).
    """
    height, width = images.shape[-2:]
    center = images[..., height // 4 : height - height // 4, width // 4 : width - width // 4]
    steps = center.long() * levels // 256
    powers = levels ** torch.arange(images.shape[1], device=images.device)
    bins = (steps * powers.view(-1, 1, 1)).sum(1).flatten(1)
    return one_hot(bins, levels ** images.shape[1]).float().mean(1)


def encode_without_network(batch: dict) -> dict[str, Tensor]:
    """Compute both baselines for a collated batch; see :func:`extract_features`."""
    images = batch['inputs']
    return dict(raw_pixels=raw_pixels(images), color_histogram=color_histogram(images))
