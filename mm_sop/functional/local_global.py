"""Similarity of local and global representations, redundancy, and the selection of cells (CO-SSL)."""

import math

import torch
from torch import Tensor

from mm_sop.functional.precision import unit_vectors


def local_global_similarity(local: Tensor, target: Tensor) -> Tensor:
    """Mean cosine between the local vectors of an image and one global vector.

    All cells are compared with the same global vector, so ``1/n sum_i <l_i, t> = <1/n sum_i l_i, t>`` for unit vectors
    l_i and t: one product with the mean of the *unit* local vectors suffices (CO-SSL). The cosine is symmetric, so
    either side may be the prediction; detach the one that is the target.

    Args:
        local: Local vectors, (B, n, d), or a map, (B, d, h, w).
        target: Global vectors, (B, d).

    Returns:
        Mean cosines in [-1, 1], (B,), at least in fp32.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> local = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # one image with two cells
        >>> local_global_similarity(local, torch.tensor([[3.0, 0.0]]))
        tensor([0.5000])
    """
    cells = _as_cells(local)
    if target.ndim != 2 or cells.shape[::2] != target.shape:
        raise ValueError(
            f'expected local (B, n, d) or (B, d, h, w) and target (B, d), got {tuple(local.shape)} and '
            f'{tuple(target.shape)}'
        )
    return (unit_vectors(cells).mean(1) * unit_vectors(target)).sum(-1)


def redundancy(local_map: Tensor) -> Tensor:
    """Mean cosine between different cells of an image, 1 when all cells are alike.

    ``R = (L |m|^2 - 1) / (L - 1)`` with m the mean of the L unit vectors, which equals the mean over the off-diagonal
    entries of the L x L matrix of cosines (CO-SSL). Cells of zeros have cosine 0 to all others.

    Args:
        local_map: Map, (B, C, h, w), or cells, (B, L, C); L = 1 gives 1.

    Returns:
        (B,), in [-1 / (L - 1), 1], at least in fp32.

    Example:
        >>> redundancy(torch.ones(1, 4, 2, 2))  # a map of equal cells
        tensor([1.])
        >>> redundancy(torch.eye(2)[None])  # orthogonal cells
        tensor([0.])
    """
    cells = unit_vectors(_as_cells(local_map))
    num_cells = cells.shape[1]
    if num_cells == 1:
        return torch.ones_like(cells[:, 0, 0])
    diagonal = cells.square().sum(-1).mean(1)
    return (num_cells * cells.mean(1).square().sum(-1) - diagonal) / (num_cells - 1)


def cosine_between_images(first: Tensor, second: Tensor) -> Tensor:
    """Mean of ``<first_i, second_j>`` over all i != j, a baseline for the cosines within an image.

    Both sides are unit vectors, or means of unit vectors, of the same images, (N, d), N > 1. For means of unit local
    vectors it is the mean over all pairs of cells, see :func:`local_global_similarity`.
    """
    count = len(first)
    all_pairs = first.sum(0) @ second.sum(0)
    return (all_pairs - (first * second).sum()) / (count * (count - 1))


def grid_cells(
    size: tuple[int, int], num_cells: int, generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor | None:
    """Choose the positions of a regular sub-grid of a map, with a random phase.

    The grid has ``floor(sqrt(num_cells))`` rows and columns, or fewer where the map is smaller; its stride is the
    largest integer that fits. Cells are selected and not averaged: averaging would enlarge their receptive fields.

    Args:
        size: Height and width of the map.
        num_cells: Number of cells to choose, at least 1.
        generator: Draws the phase of each axis, on ``device``; None for phase 0.

    Returns:
        Flat positions (row-major), (n,), or None for all cells: the map has no more than ``num_cells``.
    """
    height, width = size
    if height * width <= num_cells:
        return None
    side = math.isqrt(num_cells)
    axes = []
    for length in size:
        count = min(side, length)
        stride = length // count
        axes.append(stride * torch.arange(count, device=device))
        if generator is not None:
            num_phases = length - (count - 1) * stride
            axes[-1] += torch.randint(num_phases, (), generator=generator, device=device)
    return (axes[0][:, None] * width + axes[1]).flatten()


def uniform_cells(
    size: tuple[int, int], num_cells: int, generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor | None:
    """Draw positions uniformly without replacement; arguments and result as for :func:`grid_cells`.

    Without a generator they are those of :func:`grid_cells`.
    """
    total = size[0] * size[1]
    if total <= num_cells or generator is None:
        return grid_cells(size, num_cells, device=device)
    return torch.randperm(total, generator=generator, device=device)[:num_cells]


def _as_cells(local: Tensor) -> Tensor:
    """(B, d, h, w) -> (B, h w, d); (B, n, d) stays."""
    if local.ndim == 4:
        return local.flatten(2).transpose(1, 2)
    if local.ndim == 3:
        return local
    raise ValueError(f'expected cells (B, n, d) or a map (B, d, h, w), got {tuple(local.shape)}')
