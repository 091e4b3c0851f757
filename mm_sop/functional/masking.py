"""Global representations pooled from disturbed local maps: dropped cells, dropped blocks, noise."""

from collections.abc import Sequence

import torch
from torch import Tensor


def drop_lowest_cells(scores: Tensor, fraction: float) -> Tensor:
    """Drop the cells of a map that have the lowest scores, (B, h, w); random scores drop random cells.

    ``fraction``, in [0, 1), is rounded to whole cells; at least one survives. A larger one drops the same cells and
    more. The result is true for surviving cells, (B, h, w).
    """
    cells = scores.flatten(1)
    dropped = min(round(fraction * cells.shape[1]), cells.shape[1] - 1)
    return (cells.argsort(dim=1, stable=True).argsort(dim=1) >= dropped).view_as(scores)


def drop_block(position: Tensor, size: Sequence[int], fraction: float) -> Tensor:
    """Drop a contiguous block of cells: of all blocks whose area is nearest to the fraction, the most square one.

    Args:
        position: Row and column of the block, from its first possible position, 0, to its last, 1; in [0, 1), (B, 2).
        size: Height and width of the map, more than one cell.
        fraction: Fraction of the cells to drop, in [0, 1); at least one cell survives.

    Returns:
        True for surviving cells, (B, h, w).
    """
    height, width = size
    sides = [(a, b) for a in range(1, height + 1) for b in range(1, width + 1) if a * b < height * width]
    sides.append((0, 0))
    block = min(sides, key=lambda ab: (abs(ab[0] * ab[1] - fraction * height * width), abs(ab[0] - ab[1])))
    starts = (position * (torch.tensor([height, width]) - torch.tensor(block) + 1).to(position.device)).long()
    inside = []
    for length, start, side in zip(size, starts.T, block, strict=True):
        offsets = torch.arange(length, device=position.device) - start[:, None]  # (B, length)
        inside.append((offsets >= 0) & (offsets < side))
    return ~(inside[0][:, :, None] & inside[1][:, None, :])


def masked_mean(local_map: Tensor, keep: Tensor, over_survivors: bool = True) -> Tensor:
    """Average a map, (B, D, h, w), whose dropped cells are set to zero: (B, D).

    Args:
        keep: True for surviving cells, at least one, (B, h, w).
        over_survivors: Whether to divide the sum by the number of surviving cells; else by that of all cells.
    """
    total = (local_map * keep[:, None]).sum((2, 3))
    count = keep.sum((1, 2)) if over_survivors else torch.full_like(keep[:, 0, 0], keep[0].numel(), dtype=torch.int64)
    return total / count[:, None]


def noisy_mean(local_map: Tensor, noise: Tensor, strength: float) -> Tensor:
    """Average a map, (B, D, h, w), plus normal ``noise`` of the same shape, times ``strength`` and the map's std."""
    std = local_map.std((1, 2, 3), correction=0, keepdim=True)
    return (local_map + strength * std * noise).mean((2, 3))
