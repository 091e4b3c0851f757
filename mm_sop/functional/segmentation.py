"""Region similarity J and contour accuracy F of masks, as DAVIS defines them."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

CONTOUR_TOLERANCE = 0.008
"""Distance at which contours still match, as a fraction of the image diagonal."""


def region_similarity(mask: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union J (Perazzi et al., DAVIS 2016).

    Args:
        mask: Predicted masks, bool, (..., H, W), a tensor or a NumPy array.
        truth: True masks, bool, of the same shape.

    Returns:
        J in [0, 1], fp64, (...); 1 where both masks are empty.

    Raises:
        ValueError: If the shapes differ or the masks are not bool.
    """
    mask, truth = _to_masks(mask, truth)
    union = (mask | truth).sum((-2, -1)).double()
    intersection = (mask & truth).sum((-2, -1)).double()
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def contour_accuracy(mask: Tensor, truth: Tensor, tolerance: float = CONTOUR_TOLERANCE) -> Tensor:
    """Harmonic mean F of precision and recall of contour pixels (Perazzi et al., DAVIS 2016).

    A contour pixel is correct if a contour pixel of the other mask lies within ``ceil(tolerance * diagonal)`` pixels.

    Masks as for :func:`region_similarity`. F is in [0, 1], fp64, (...); 1 where neither mask has a contour.

    Raises:
        ValueError: If the shapes differ or the masks are not bool.
    """
    mask, truth = _to_masks(mask, truth)
    radius = math.ceil(tolerance * math.hypot(*mask.shape[-2:]))
    found, wanted = mask_contour(mask), mask_contour(truth)
    precision = _matched_fraction(found, dilate(wanted, radius))
    recall = _matched_fraction(wanted, dilate(found, radius))
    return 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float64).tiny)


def mask_contour(mask: Tensor) -> Tensor:
    """Pixels of a mask, (..., H, W), that differ from the one to the right, below, or diagonally below."""
    right = torch.cat([mask[..., :, 1:], mask[..., :, -1:]], dim=-1)
    lower, lower_right = (torch.cat([rows[..., 1:, :], rows[..., -1:, :]], dim=-2) for rows in (mask, right))
    return (mask ^ right) | (mask ^ lower) | (mask ^ lower_right)


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Dilate bool masks, (..., H, W), by a disk: all pixels within ``radius`` pixels of a set one."""
    height, width = mask.shape[-2:]
    # With cumulative sums along the rows, one subtraction tells whether a run of pixels has a set one.
    sums = pad(mask.int(), (radius + 1, radius, radius, radius)).cumsum(-1, dtype=torch.int32)
    reached = torch.zeros_like(mask)
    for shift in range(-radius, radius + 1):
        half = math.isqrt(radius**2 - shift**2)
        rows = sums[..., radius + shift : radius + shift + height, :]
        right, left = radius + 1 + half, radius - half
        reached |= rows[..., right : right + width] > rows[..., left : left + width]
    return reached


def _matched_fraction(contour: Tensor, neighborhood: Tensor) -> Tensor:
    """Fraction of contour pixels inside a neighborhood; 1 without contour pixels."""
    total = contour.sum((-2, -1)).double()
    return torch.where(total > 0, (contour & neighborhood).sum((-2, -1)) / total.clamp(min=1), 1.0)


def _to_masks(mask: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    mask, truth = torch.as_tensor(mask), torch.as_tensor(truth)
    if mask.shape != truth.shape or mask.ndim < 2:
        raise ValueError(f'expected two masks (..., H, W), got {tuple(mask.shape)} and {tuple(truth.shape)}')
    if mask.dtype != torch.bool or truth.dtype != torch.bool:
        raise ValueError(f'masks must be bool, got {mask.dtype} and {truth.dtype}: compare labels with an object first')
    return mask, truth
