"""Exponential moving average of parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def update_ema(targets: Sequence[Tensor], sources: Sequence[Tensor], momentum: float) -> None:
    """Move every target towards its source in place, ``target <- m target + (1 - m) source``, in one fused operation.

    Raises:
        ValueError: If the momentum is not in [0, 1] or the numbers of tensors differ.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f'momentum must be in [0, 1], got {momentum}')
    if len(targets) != len(sources):
        raise ValueError(f'{len(targets)} target tensors do not match {len(sources)} source tensors')
    if targets:
        torch._foreach_lerp_(list(targets), list(sources), 1 - momentum)
