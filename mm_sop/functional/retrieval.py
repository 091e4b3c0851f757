"""Metrics of ranked lists, by the rules of the revisited Oxford and Paris datasets."""

from collections.abc import Sequence

import torch
from torch import Tensor

Indices = Tensor | Sequence[int]


def average_precision(ranking: Indices, positives: Indices, junk: Indices = ()) -> float:
    """Area under the precision-recall curve of one query, by trapezoids.

    Junk is removed from the ranking before it is scored (Radenovic et al., Revisiting Oxford and Paris). Between two
    positives the precision falls, so the area of a step is the mean of the precision before and after the positive.

    Args:
        ranking: Indices of the database, best first, each at most once. Missing positives count as never found.
        positives: Indices of the images to find.
        junk: Indices of images that count neither as correct nor as wrong.

    Returns:
        Average precision in [0, 1]; nan without positives.

    Raises:
        ValueError: If the ranking repeats an index, or an index is positive and junk at once.
    """
    return ranks_to_average_precision(positive_ranks(ranking, positives, junk), len(_to_indices(positives).unique()))


def positive_ranks(ranking: Indices, positives: Indices, junk: Indices = ()) -> Tensor:
    """Find the positives in a ranking without its junk; arguments as for :func:`average_precision`.

    Returns:
        Zero-based ranks in ascending order, int64, (number of positives in the ranking,).

    Raises:
        ValueError: If the ranking repeats an index, an index is positive and junk at once, or a value is not an index.
    """
    ranking, positives, junk = map(_to_indices, (ranking, positives, junk))
    both = positives[torch.isin(positives, junk)]
    if len(both):
        raise ValueError(f'{both.unique().tolist()[:5]} are positives and junk at once: check the ground truth')
    if len(ranking.unique()) < len(ranking):
        raise ValueError('the ranking names an image twice')
    kept = ranking[~torch.isin(ranking, junk)]
    return torch.isin(kept, positives).nonzero().squeeze(1)


def ranks_to_average_precision(ranks: Tensor, num_positives: int) -> float:
    """Compute :func:`average_precision` from the zero-based, ascending ranks of the positives that were found, (n,)."""
    if not num_positives:
        return float('nan')
    ranks = ranks.double()
    found = torch.arange(len(ranks), device=ranks.device, dtype=ranks.dtype)
    before = torch.where(ranks > 0, found / ranks.clamp(min=1), 1.0)
    after = (found + 1) / (ranks + 1)
    return float((before + after).sum() / (2 * num_positives))


def ranks_to_precision(ranks: Tensor, cutoff: int) -> float:
    """Precision among the first ``cutoff`` images from the zero-based, ascending ranks of the positives, (n,).

    If the last positive ranks before the cutoff, only the images up to it count, so that queries with few positives
    can reach 1 (the revisited rule). Without any positive it is 0.
    """
    if not len(ranks):
        return 0.0
    cutoff = min(cutoff, int(ranks[-1]) + 1)
    return int((ranks < cutoff).sum()) / cutoff


def _to_indices(indices: Indices) -> Tensor:
    # Reversed NumPy arrays have negative strides, which torch does not support.
    if hasattr(indices, 'strides'):
        indices = indices.copy()  # type: ignore[union-attr]  # an array
    indices = torch.as_tensor(indices)
    if indices.numel() and (indices.dtype == torch.bool or indices.is_floating_point()):
        raise ValueError(f'expected indices, got {indices.dtype}: turn a mask into indices with nonzero()')
    return indices.long()
