"""Exchanges embeddings between processes.

Rank r holds the samples r, r + W, r + 2W, ... of a global batch over W processes (``ResumableSampler``). Gathered rows
are put back into that order, so that every process sees what a single process with the whole batch would see.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_dist_info
from torch import Tensor
from torch.distributed.tensor import DTensor


def gather_in_sample_order(tensor: Tensor) -> Tensor:
    """Gather the rows of all processes in the order of the global batch, (b, ...) -> (W b, ...), without gradients."""
    _, world_size = get_dist_info()
    if world_size == 1:
        return tensor.detach()
    gathered = tensor.new_empty(world_size, *tensor.shape)
    dist.all_gather_into_tensor(gathered.flatten(0, 1), tensor.detach().contiguous())
    return gathered.transpose(0, 1).flatten(0, 1)


def own_samples(tensor: Tensor) -> Tensor:
    """Select the rows of this process from a tensor in the order of the global batch, (W b, ...) -> (b, ...)."""
    rank, world_size = get_dist_info()
    return tensor[rank::world_size]


def own_shards(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Select the shards of this process, views of the memory of sharded tensors; others stay as they are."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norms of whole or sharded tensors, (n,); all of them are sharded over all processes, or none is."""
    norms = torch.stack(torch._foreach_norm(own_shards(tensors)))
    if isinstance(tensors[0], DTensor):
        squares = norms.square()
        dist.all_reduce(squares)
        norms = squares.sqrt()
    return norms


def gather_with_gradient(tensor: Tensor) -> tuple[Tensor, int]:
    """Gather the rows of all processes in rank order, (b, ...) -> (W b, ...), with gradients to every process.

    Returns:
        The rows, and the index of the first row of this process.
    """
    rank, world_size = get_dist_info()
    if world_size == 1:
        return tensor, 0
    return _GatherWithGradient.apply(tensor), rank * len(tensor)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        rank, world_size = get_dist_info()
        ctx.rows = slice(rank * len(tensor), (rank + 1) * len(tensor))
        gathered = tensor.new_empty(world_size * len(tensor), *tensor.shape[1:])
        dist.all_gather_into_tensor(gathered, tensor.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[ctx.rows]
