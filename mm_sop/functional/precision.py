"""Computation in float32 at least."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Convert half precision to float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit_vectors(vectors: Tensor) -> Tensor:
    """L2-normalize the last axis in float32 at least: half precision would divide vectors of zeros by zero."""
    return normalize(at_least_fp32(vectors), dim=-1)
