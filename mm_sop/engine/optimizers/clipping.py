"""Gradient clipping without a host synchronisation."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def clip_per_tensor(grads: Sequence[Tensor], max_norm: float) -> Tensor:
    """Limit the L2 norm of every gradient by itself, in place, as DINO, iBOT and SOP do.

    Args:
        grads: Gradients of any shapes.
        max_norm: Largest norm of one gradient.

    Returns:
        L2 norm of all gradients together before clipping, a scalar.
    """
    norms = torch.stack(torch._foreach_norm(grads))
    scales = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, scales.unbind())
    return norms.norm()


@torch.no_grad()
def clip_global_norm(grads: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients by one factor so that their joint L2 norm is limited, in place.

    Args:
        grads: Gradients of any shapes.
        max_norm: Largest joint norm.

    Returns:
        L2 norm of all gradients together before clipping, a scalar.
    """
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


CLIPPING = dict(per_tensor=clip_per_tensor, global_norm=clip_global_norm)
