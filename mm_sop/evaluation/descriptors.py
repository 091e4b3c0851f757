"""Image descriptors for retrieval and copy detection, kept on the disk, and rankings by them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from mmengine.dist import all_reduce, get_comm_device, get_dist_info
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from torch.utils.data import Dataset, Subset

from mm_sop.evaluation.cache import DTYPES, FeatureShards, content_key, describe_pictures, refuse_non_finite
from mm_sop.evaluation.encoders import FrozenEncoder
from mm_sop.evaluation.features import extract_features
from mm_sop.evaluation.protocol import EvaluationContext
from mm_sop.functional.whitening import generalized_mean
from mm_sop.models.utils.readout import read_out

PARTS = ('global', 'patch', 'gem')
"""``'global'``: [CLS] or the pooled map; ``'patch'``: the mean of the local map; ``'gem'``: its generalised mean."""

# Patches and strides of most networks divide it; a local map of other sides may be ambiguous.
_MULTIPLE = 16


@dataclass(frozen=True)
class Descriptor:
    """How one vector is made of a picture: parts side by side, the mean over several sizes, of length 1.

    Args:
        parts: Which of :data:`PARTS`.
        scales: Sizes at which the picture is shown, relative to its own.
    """

    parts: Sequence[str] = ('global',)
    scales: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        unknown = set(self.parts) - set(PARTS)
        if unknown or not self.parts:
            raise ValueError(f'parts of a descriptor must be among {PARTS}, got {tuple(self.parts)}')
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f'scales must be positive numbers, got {tuple(self.scales)}')

    def encode(self, encoder: FrozenEncoder, batch: dict, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Describe a collated batch of pictures of one size.

        Args:
            encoder: The network.
            batch: ``inputs`` and ``data_samples``.
            dtype: Type in which the network computes.

        Returns:
            ``features``, fp32, (B, D), on the CPU.
        """
        images = encoder.data_preprocessor(batch, False)['inputs']
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            sizes = [self._read(encoder, resize_by(images, scale)).float() for scale in self.scales]
        return dict(features=normalize(torch.stack(sizes).mean(0), dim=1).cpu())

    def _read(self, encoder: FrozenEncoder, images: Tensor) -> Tensor:
        output = read_out(encoder.network, images)
        read = {
            'global': lambda: output.global_features,
            'patch': lambda: output.local_map.mean((2, 3)),
            'gem': lambda: generalized_mean(output.local_map),
        }
        return torch.cat([read[part]() for part in self.parts], dim=1)


def resize_by(images: Tensor, scale: float, multiple: int = _MULTIPLE) -> Tensor:
    """Resize pictures, (B, C, H, W), to sides that are multiples of a number, at least two of it."""
    size = [max(round(scale * side / multiple), 2) * multiple for side in images.shape[2:]]
    if size == list(images.shape[2:]):
        return images
    return interpolate(images, size=size, mode='bilinear', align_corners=False, antialias=scale < 1)


def describe(
    context: EvaluationContext, dataset: Dataset, descriptor: Descriptor, transform: dict, batch_size: int | None = None
) -> Tensor:
    """Descriptors of a data set, extracted by all processes together where they are not on the disk.

    Args:
        context: What the evaluation runs with.
        dataset: The pictures.
        descriptor: What is made of each.
        transform: What the pipeline does, and the version of the protocol, ready for JSON.
        batch_size: Pictures encoded at once; 1 where their sizes differ. Defaults to None, that of the context.

    Returns:
        Descriptors, (N, D), fp32, on the CPU.

    Raises:
        ValueError: They are not finite.
    """
    cache = context.cache
    definition = dict(
        encoder=context.encoder.identity,
        data=describe_pictures(dataset),
        transform=transform,
        descriptor=asdict(descriptor),
        dtype=cache.dtype,
    )
    shards = FeatureShards(
        cache.folder / content_key(definition), np.arange(len(dataset)), definition, cache.shard_size, dtype=cache.dtype
    )
    encode = _encoder(context, descriptor)
    shards.encode(encode, dataset, batch_size or context.batch_size, context.num_workers)
    descriptors = shards.load()
    refuse_non_finite(descriptors, dataset, shards.folder)
    return descriptors


def count_distractors(
    context: EvaluationContext,
    distractors: Dataset,
    descriptor: Descriptor,
    queries: Tensor,
    similarity: Tensor,
    block_size: int = 10_000,
    change: Callable[[Tensor], Tensor] = lambda features: features,
    part: str = 'distractors',
) -> Tensor:
    """Count the distractors that stand before every picture of the database in every ranking.

    They are streamed in blocks: neither their descriptors nor their similarities are kept. An interrupted count goes on
    after the last block. Of equal similarities the picture of the database comes first.

    Args:
        context: What the evaluation runs with.
        distractors: Pictures that no query should find, of any sizes.
        descriptor: What is made of each.
        queries: Descriptors of the queries, (n, D).
        similarity: Of queries and database, (n, N).
        block_size: Pictures whose descriptors a process holds at once.
        change: Applied to the descriptors of a block, such as whitening.
        part: What is counted, see :meth:`EvaluationContext.part`.

    Returns:
        Counts, int64, (n, N).
    """
    rank, world_size = get_dist_info()
    share = range(rank, len(distractors), world_size)
    above, started = torch.zeros(similarity.shape, dtype=torch.int64), time.perf_counter()
    encode = _encoder(context, descriptor)

    def count(block: Dataset) -> dict[str, np.ndarray]:
        features = extract_features(encode, block, 1, context.num_workers)['features']
        return dict(above=count_above(queries @ change(features).T, similarity).numpy())

    for start in range(0, len(share), block_size):
        block = Subset(distractors, share[start : start + block_size])
        above += torch.from_numpy(context.part(f'{part}_{start}', partial(count, block))['above'])
        done = min(start + block_size, len(share))
        seconds = (time.perf_counter() - started) / done * (len(share) - done)
        print_log(f'Compared {done:,} of {len(share):,} distractors, {seconds:.0f} s left', logger='current')
    above = above.to(get_comm_device()) if world_size > 1 else above
    all_reduce(above)
    return above.cpu()


def count_above(others: Tensor, similarity: Tensor) -> Tensor:
    """For every entry of (n, N) the number of entries in the same row of (n, M) that are larger, int64, (n, N)."""
    return others.shape[1] - torch.searchsorted(others.sort(dim=1).values, similarity.contiguous(), right=True)


def _encoder(context: EvaluationContext, descriptor: Descriptor) -> Callable[[dict], dict[str, Tensor]]:
    return partial(descriptor.encode, context.encoder, dtype=DTYPES[context.cache.dtype])
