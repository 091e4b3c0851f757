"""Gradient clipping without a host synchronization."""

import torch
from torch import Tensor


@torch.no_grad()
def clip_per_tensor(grads: list[Tensor], max_norm: float) -> Tensor:
    """Limit the L2 norm of every gradient separately, in place, as DINO, iBOT and SOP do.

    Args:
        grads: Gradients of any shapes.
        max_norm: Maximum norm of one gradient.

    Returns:
        Joint L2 norm of all gradients before clipping, a scalar.
    """
    norms = torch.stack(torch._foreach_norm(grads))
    scales = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, list(scales.unbind()))
    return norms.norm()


@torch.no_grad()
def clip_global_norm(grads: list[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients by one factor so that their joint L2 norm is limited, in place.

    Args:
        grads: Gradients of any shapes.
        max_norm: Maximum joint norm.

    Returns:
        Joint L2 norm of all gradients before clipping, a scalar.
    """
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


CLIPPING = dict(per_tensor=clip_per_tensor, global_norm=clip_global_norm)
