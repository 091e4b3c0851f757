"""Effective receptive field: the pixels that a cell of a map responds to."""

from collections.abc import Callable

import torch
from torch import Tensor


def input_gradients(encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Absolute gradient of the norm of the central cell with respect to the pixels, summed over channels, (B, H, W).

    ``encode`` turns normalized images, (B, C, H, W), into local maps, (B, D, h, w).
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        local_map = encode(images)
        norms = local_map[:, :, local_map.shape[2] // 2, local_map.shape[3] // 2].norm(dim=1)
        (gradient,) = torch.autograd.grad(norms.sum(), images)
    return gradient.abs().sum(1)


def median_position(mass: Tensor) -> tuple[float, float]:
    """Medians of a mass, (H, W), along rows and columns: the center of a field, also where padding has shifted it.

    The mass is non-negative and not all zero. Row and column are relative to the center of the first pixel.
    """
    medians = []
    for axis in (1, 0):
        profile = mass.double().cpu().sum(axis)
        cumulative = profile.cumsum(0)
        pixel = int(torch.searchsorted(cumulative, cumulative[-1] / 2))
        missing = cumulative[-1] / 2 - (cumulative[pixel] - profile[pixel])
        medians.append(pixel - 0.5 + float(missing / profile[pixel]))
    return medians[0], medians[1]


def mass_radius(mass: Tensor, center: tuple[float, float], fraction: float) -> float:
    """Radius of the smallest disk around a point (row, column) that holds a fraction in (0, 1] of a mass, (H, W).

    The mass is non-negative and not all zero; the radius is the distance of the farthest pixel in the disk.
    """
    height, width = mass.shape
    rows = torch.arange(height, dtype=torch.float64) - center[0]
    columns = torch.arange(width, dtype=torch.float64) - center[1]
    distances, order = torch.hypot(rows[:, None], columns[None]).flatten().sort()
    cumulative = mass.double().cpu().flatten()[order].cumsum(0)
    first = int(torch.searchsorted(cumulative, fraction * cumulative[-1] * (1 - 1e-12)))
    return float(distances[first])
