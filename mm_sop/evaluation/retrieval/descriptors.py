"""Image descriptors for retrieval and copy detection: encoding, caching, and comparison with distractors."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import all_reduce, get_comm_device, get_dist_info
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Subset

from mm_sop.encoders.encoder import Encoder
from mm_sop.evaluation.context import EvaluationContext
from mm_sop.evaluation.features.extraction import DESCRIPTOR_PARTS, DTYPES, extract_features, named_array, resize_by
from mm_sop.evaluation.features.identity import content_key, describe_images
from mm_sop.evaluation.features.store import FeatureShards, check_finite
from mm_sop.models.utils.readout import read_out


@dataclass(frozen=True)
class Descriptor:
    """Descriptor of an image: concatenated arrays, averaged over several scales and normalized.

    Args:
        parts: Arrays to concatenate, see :data:`DESCRIPTOR_PARTS`.
        scales: Sizes of the image relative to its own.
    """

    parts: Sequence[str] = ('global',)
    scales: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        unknown = set(self.parts) - set(DESCRIPTOR_PARTS)
        if unknown or not self.parts:
            raise ValueError(f'parts of a descriptor must be among {DESCRIPTOR_PARTS}, got {tuple(self.parts)}')
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f'scales must be positive numbers, got {tuple(self.scales)}')

    def encode(self, encoder: Encoder, batch: dict, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Describe a collated batch of images of one size by ``features``, fp32, (B, D), on the CPU."""
        images = encoder.data_preprocessor(batch, False)['inputs']
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            by_scale = []
            for scale in self.scales:
                readout = read_out(encoder.network, resize_by(images, scale))
                by_scale.append(torch.cat([named_array(readout, part) for part in self.parts], dim=1).float())
        return dict(features=normalize(torch.stack(by_scale).mean(0), dim=1).cpu())


def describe(
    context: EvaluationContext,
    dataset: BaseDataset,
    descriptor: Descriptor,
    transform: dict,
    batch_size: int | None = None,
) -> Tensor:
    """Descriptors of a dataset, (N, D), fp32, on the CPU: cached, or extracted by all processes together.

    Args:
        transform: What the pipeline does, and the version of the protocol, JSON-serializable.
        batch_size: Images encoded at once; 1 if their sizes differ. Defaults to None, that of the context.

    Raises:
        ValueError: Some are NaN or infinite.
    """
    cache = context.cache
    network, data = context.encoder.identity, describe_images(dataset)
    definition = dict(encoder=network, data=data, transform=transform, descriptor=asdict(descriptor), dtype=cache.dtype)
    folder = cache.folder / content_key(definition)
    shards = FeatureShards(folder, np.arange(len(dataset)), definition, cache.shard_size, dtype=cache.dtype)
    encode = _encoder(context, descriptor)
    shards.encode(encode, dataset, batch_size or context.batch_size, context.num_workers)
    descriptors = shards.load()
    check_finite(descriptors, dataset, shards.folder)
    return descriptors


def count_distractors(
    context: EvaluationContext,
    distractors: BaseDataset,
    descriptor: Descriptor,
    queries: Tensor,
    similarity: Tensor,
    block_size: int = 10_000,
    change: Callable[[Tensor], Tensor] | None = None,
    part: str = 'distractors',
) -> Tensor:
    """Count the distractors ranked before every image of the database for every query.

    Distractors are processed in blocks, and their descriptors are not stored. An interrupted count is resumed after the
    last block. In ties the image of the database comes first.

    Args:
        distractors: Images that no query should find, of any sizes.
        queries: Descriptors of the queries, (n, D).
        similarity: Similarity of queries and database, (n, N).
        block_size: Images whose descriptors a process holds in memory.
        change: Function of the descriptors, such as whitening.
        part: Name of the count, see :meth:`EvaluationContext.part`.

    Returns:
        Counts, int64, (n, N).
    """
    rank, world_size = get_dist_info()
    own_rows = range(rank, len(distractors), world_size)
    above, started = torch.zeros(similarity.shape, dtype=torch.int64), time.perf_counter()
    encode = _encoder(context, descriptor)

    def count(block: BaseDataset) -> dict[str, np.ndarray]:
        features = extract_features(encode, block, 1, context.num_workers)['features']
        features = features if change is None else change(features)
        return dict(above=count_above(queries @ features.T, similarity).numpy())

    for start in range(0, len(own_rows), block_size):
        block = Subset(distractors, own_rows[start : start + block_size])
        above += torch.from_numpy(context.part(f'{part}_{start}', partial(count, block))['above'])
        done = min(start + block_size, len(own_rows))
        seconds = (time.perf_counter() - started) / done * (len(own_rows) - done)
        print_log(f'Compared {done:,} of {len(own_rows):,} distractors, {seconds:.0f} s left', logger='current')
    above = above.to(get_comm_device()) if world_size > 1 else above
    all_reduce(above)
    return above.cpu()


def count_above(others: Tensor, similarity: Tensor) -> Tensor:
    """Count, for every entry of (n, N), the larger entries in the same row of (n, M); int64, (n, N)."""
    return others.shape[1] - torch.searchsorted(others.sort(dim=1).values, similarity.contiguous(), right=True)


def _encoder(context: EvaluationContext, descriptor: Descriptor) -> Callable[[dict], dict[str, Tensor]]:
    return partial(descriptor.encode, context.encoder, dtype=DTYPES[context.cache.dtype])
