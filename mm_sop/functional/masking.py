"""Representations with a part of the local map taken away."""

import torch
from torch import Tensor


def drop_lowest_cells(scores: Tensor, share: float) -> Tensor:
    """Which cells of a map survive when some are dropped, at random if their scores are.

    Args:
        scores: Numbers that decide: the smallest are dropped, (B, h, w). Larger shares drop more of the same.
        share: Share of the cells, in [0, 1), rounded to whole cells; at least one survives.

    Returns:
        True for survivors, (B, h, w).
    """
    cells = scores.flatten(1)
    dropped = min(round(share * cells.shape[1]), cells.shape[1] - 1)
    return (cells.argsort(dim=1, stable=True).argsort(dim=1) >= dropped).view_as(scores)


def drop_block(position: Tensor, size: tuple[int, int], share: float) -> Tensor:
    """Which cells of a map survive when a contiguous block is dropped.

    Of all blocks with the area nearest to the share the most square one is taken.

    Args:
        position: Where the block lies between its first and its last place, rows and columns, in [0, 1), (B, 2).
        size: Height and width of the map, more than one cell.
        share: Share of the cells, in [0, 1); at least one cell survives.

    Returns:
        True for survivors, (B, h, w).
    """
    height, width = size
    sides = [(a, b) for a in range(1, height + 1) for b in range(1, width + 1) if a * b < height * width]
    sides.append((0, 0))
    block = min(sides, key=lambda ab: (abs(ab[0] * ab[1] - share * height * width), abs(ab[0] - ab[1])))
    places = (position * (torch.tensor([height, width]) - torch.tensor(block) + 1).to(position.device)).long()
    inside = [
        (torch.arange(length, device=position.device) - place[:, None] >= 0)
        & (torch.arange(length, device=position.device) - place[:, None] < side)
        for length, place, side in zip(size, places.T, block, strict=True)
    ]
    return ~(inside[0][:, :, None] & inside[1][:, None, :])


def masked_mean(local_map: Tensor, keep: Tensor, over_survivors: bool = True) -> Tensor:
    """Pool a map of which some cells are set to zero.

    Args:
        local_map: (B, D, h, w).
        keep: True for cells that survive, at least one, (B, h, w).
        over_survivors: Whether the sum is divided by the number of survivors, else by that of all cells.

    Returns:
        (B, D).
    """
    total = (local_map * keep[:, None]).sum((2, 3))
    count = keep.sum((1, 2)) if over_survivors else torch.full_like(keep[:, 0, 0], keep[0].numel(), dtype=torch.int64)
    return total / count[:, None]


def noisy_mean(local_map: Tensor, noise: Tensor, strength: float) -> Tensor:
    """Pool a map to which noise is added.

    Args:
        local_map: (B, D, h, w).
        noise: Normal random numbers of the same shape.
        strength: Deviation of the noise as a multiple of the map's own.

    Returns:
        (B, D).
    """
    deviation = local_map.std((1, 2, 3), correction=0, keepdim=True)
    return (local_map + strength * deviation * noise).mean((2, 3))
