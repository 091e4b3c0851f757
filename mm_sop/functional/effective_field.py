"""Effective receptive field: what a cell of a map reacts to."""

from collections.abc import Callable

import torch
from torch import Tensor


def input_gradients(encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Absolute gradient of the central cell's length with respect to the pixels.

    Args:
        encode: Maps images to local maps, (B, D, h, w).
        images: Normalised images, (B, C, H, W).

    Returns:
        Sum over the channels, (B, H, W).
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        local_map = encode(images)
        lengths = local_map[:, :, local_map.shape[2] // 2, local_map.shape[3] // 2].norm(dim=1)
        (gradient,) = torch.autograd.grad(lengths.sum(), images)
    return gradient.abs().sum(1)


def median_position(mass: Tensor) -> tuple[float, float]:
    """Point that has half of a mass above and half on its left: the middle of a field, wherever padding has put it.

    Args:
        mass: Not negative and not all zero, (H, W).

    Returns:
        Row and column, from the middle of the first pixel.
    """
    row, column = (_median(mass.double().cpu().sum(axis)) for axis in (1, 0))
    return row, column


def mass_radius(mass: Tensor, center: tuple[float, float], share: float) -> float:
    """Radius of the smallest disc around a point that holds a share of a mass.

    Args:
        mass: Not negative and not all zero, (H, W).
        center: Row and column.
        share: In (0, 1].

    Returns:
        Distance of the farthest pixel that is needed.
    """
    height, width = mass.shape
    rows = torch.arange(height, dtype=torch.float64) - center[0]
    columns = torch.arange(width, dtype=torch.float64) - center[1]
    distances, order = torch.hypot(rows[:, None], columns[None]).flatten().sort()
    held = mass.double().cpu().flatten()[order].cumsum(0)
    first = int(torch.searchsorted(held, share * held[-1] * (1 - 1e-12)))
    return float(distances[first])


def _median(mass: Tensor) -> float:
    held = mass.cumsum(0)
    pixel = int(torch.searchsorted(held, held[-1] / 2))
    missing = held[-1] / 2 - (held[pixel] - mass[pixel])
    return pixel - 0.5 + float(missing / mass[pixel])
