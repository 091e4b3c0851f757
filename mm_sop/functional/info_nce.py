"""Contrastive loss against the keys of a batch."""

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint


def info_nce_loss(
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    temperature: float = 1.0,
    cells_per_chunk: int | None = None,
) -> Tensor:
    """Cross-entropy that finds the key of a query among all keys (MoCo v3, algorithm 1), averaged.

    Queries or keys, or both, may have n cells per image. A query cell meets the image's key and the keys of all other
    images; with key cells, the i-th cells of all images are the keys of one problem. The loss is the mean over images
    and cells. The (n, B, N) logits are made for ``cells_per_chunk`` cells at a time and computed again in the backward
    pass, so that they need not be held.

    Args:
        queries: (B, d) or (B, n, d); normalised here.
        keys: (N, d) or (N, n, d), constant; normalised here.
        positives: Row of each query's own key, (B,), int64.
        temperature: Divides the cosines.
        cells_per_chunk: Cells whose logits exist at once; None for all.

    Returns:
        Scalar, at least in fp32.

    Raises:
        ValueError: If the numbers of cells of queries and keys differ.
    """
    queries, keys = _cells_first(queries), _cells_first(keys.detach())
    cells = {len(side) for side in (queries, keys) if side.ndim == 3}
    if len(cells) > 1:
        raise ValueError(f'queries have {len(queries)} cells and keys {len(keys)}: give one number or one side only')
    num_cells = max(cells, default=1)
    step = cells_per_chunk or num_cells
    if step >= num_cells:
        return _cross_entropy(queries, keys, positives, temperature) / num_cells
    total = 0.0
    for first in range(0, num_cells, step):
        parts = [side[first : first + step] if side.ndim == 3 else side for side in (queries, keys)]
        total = total + checkpoint(_cross_entropy, *parts, positives, temperature, use_reentrant=False)
    return total / num_cells


def _cells_first(vectors: Tensor) -> Tensor:
    """Unit vectors, (B, d) or (n, B, d)."""
    vectors = normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
    return vectors.transpose(0, 1) if vectors.ndim == 3 else vectors


def _cross_entropy(queries: Tensor, keys: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Mean over images, summed over cells; (B, d) or (n, B, d) against (N, d) or (n, N, d)."""
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries @ keys.mT / temperature
    own = logits.take_along_dim(positives[:, None].expand(*logits.shape[:-1], 1), dim=-1).squeeze(-1)
    return (logits.logsumexp(-1) - own).mean(-1).sum()
