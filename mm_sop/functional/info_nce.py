"""Contrastive loss against the keys of a batch."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mm_sop.functional.precision import unit_vectors


def info_nce_loss(
    queries: Tensor, keys: Tensor, positives: Tensor, temperature: float = 1.0, cells_per_chunk: int | None = None
) -> Tensor:
    """Cross-entropy of identifying the key of each query among all keys (MoCo v3, algorithm 1), averaged.

    Queries or keys, or both, may have n cells per image. A query cell is compared with the image's key and the keys of
    all other images; with key cells, the i-th cells of all images are the keys of one classification problem. The loss
    is the mean over images and cells. The (n, B, N) logits are computed for ``cells_per_chunk`` cells at a time, and
    again in the backward pass, so that they are never stored.

    Args:
        queries: (B, d) or (B, n, d); normalized here.
        keys: (N, d) or (N, n, d), constant; normalized here.
        positives: Row of the key of each query, (B,), int64.
        temperature: Divides the cosines.
        cells_per_chunk: Cells whose logits exist at once; None for all.

    Raises:
        ValueError: If the numbers of cells of queries and keys differ.

    Example:
        >>> embeddings = torch.eye(4)
        >>> info_nce_loss(embeddings, embeddings, positives=torch.arange(4), temperature=0.1)
        tensor(0.0001)
    """
    queries, keys = _cells_first(queries), _cells_first(keys.detach())
    cells = {len(side) for side in (queries, keys) if side.ndim == 3}
    if len(cells) > 1:
        raise ValueError(f'queries have {len(queries)} cells and keys {len(keys)}: give one number or one side only')
    num_cells = max(cells, default=1)
    step = cells_per_chunk or num_cells
    if step >= num_cells:
        return _cross_entropy(queries, keys, positives, temperature) / num_cells
    total = queries.new_zeros(())
    for first in range(0, num_cells, step):
        chunks = [side[first : first + step] if side.ndim == 3 else side for side in (queries, keys)]
        total = total + checkpoint(_cross_entropy, *chunks, positives, temperature, use_reentrant=False)
    return total / num_cells


def _cells_first(vectors: Tensor) -> Tensor:
    """Unit vectors, (B, d) or (n, B, d)."""
    vectors = unit_vectors(vectors)
    return vectors.transpose(0, 1) if vectors.ndim == 3 else vectors


def _cross_entropy(queries: Tensor, keys: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Mean over images, summed over cells; (B, d) or (n, B, d) against (N, d) or (n, N, d)."""
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries @ keys.mT / temperature
    positive = logits.take_along_dim(positives[:, None].expand(*logits.shape[:-1], 1), dim=-1).squeeze(-1)
    return (logits.logsumexp(-1) - positive).mean(-1).sum()
