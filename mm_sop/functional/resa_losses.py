"""Cross-entropy between soft assignments and similarities of embeddings, in the forms that ReSA needs."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mm_sop.functional.precision import at_least_fp32

MAX_LOGITS = 2**24
"""Number of logits that :func:`assigned_keys_loss` holds at once."""


def soft_assignment_loss(logits: Tensor, assignment: Tensor) -> Tensor:
    """Mean cross-entropy of every sample's softmax over the anchors with its assignment: the objective of ReSA.

    ``L = -1/n sum_i sum_j A_ij log softmax_j(C_ij)``. Averaged over several processes, each with its own samples,
    values and gradients equal those of one process with all samples.

    Args:
        logits: Similarities C divided by the temperature, (..., n, N).
        assignment: A, (n, N). No gradient flows into it.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> logits = torch.zeros(2, 2)  # the softmax is uniform
        >>> soft_assignment_loss(logits, torch.eye(2))
        tensor(0.6931)
    """
    logits, assignment = _prepare(logits, assignment)
    return -(assignment * logits.log_softmax(-1)).sum(-1).mean()


def symmetric_soft_assignment_loss(
    logits: Tensor, assignment: Tensor, group: 'dist.ProcessGroup | None' = None
) -> Tensor:
    """Mean of the cross-entropies over the anchors of each sample and over the samples of each anchor.

    The second term compares the softmax of every column, over the samples of all processes, with the column of the
    assignment, which sums to about 1. This is the objective as written in ReSA's paper. Values differ between
    processes; averaged over the processes, values and gradients equal those of one process with all samples.

    Args:
        logits: Similarities C of this process's samples with the anchors of all processes, divided by the temperature,
            (..., n, N), with as many anchors as samples in all.
        assignment: A, (n, N). No gradient flows into it.
        group: Processes that hold the samples; None for all of them, or for this one alone without torch.distributed.

    Raises:
        ValueError: If the shapes differ.
    """
    logits, assignment = _prepare(logits, assignment)
    by_sample = soft_assignment_loss(logits, assignment)
    column_sums = _sum_over_processes(assignment.sum(0), group)
    attraction = (assignment * logits).sum(-1).mean()
    # logsumexp over the rows of all processes, (..., n, N) -> (..., N)
    largest = logits.detach().amax(-2)
    if _is_distributed():
        dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    totals = _sum_over_processes((logits - largest.unsqueeze(-2)).exp().sum(-2), group)
    by_anchor = (column_sums * (largest + totals.log())).mean() - attraction
    return (by_sample + by_anchor) / 2


def assigned_keys_loss(
    embeddings: Tensor, keys: Tensor, assigned_keys: Tensor, temperature: float = 0.4, max_logits: int = MAX_LOGITS
) -> Tensor:
    """Compute :func:`soft_assignment_loss` without holding the assignment and all logits at once.

    As the rows of A sum to 1, ``L = mean_i [logsumexp_j(z_i k_j / t) - z_i T_i / t]`` with ``T = A K``, which all
    views share. Logits are computed block by block, and again in the backward pass, so memory does not grow with n N.

    Args:
        embeddings: Unit rows z, (..., n, d).
        keys: Unit rows K, (N, d).
        assigned_keys: The mean T of the keys under every sample's assignment, (n, d).
        temperature: Temperature t of the softmax.
        max_logits: Number of logits that are held at once.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if embeddings.shape[-2:] != assigned_keys.shape or embeddings.shape[-1] != keys.shape[-1]:
        raise ValueError(
            f'expected (..., n, d), (N, d) and (n, d), got {tuple(embeddings.shape)}, {tuple(keys.shape)} and '
            f'{tuple(assigned_keys.shape)}'
        )
    with torch.autocast(embeddings.device.type, enabled=False):
        keys, assigned_keys = at_least_fp32(keys), at_least_fp32(assigned_keys)
        queries = at_least_fp32(embeddings) / temperature
        normalizers = _LogSumExpOfProducts.apply(queries.flatten(0, -2), keys, max(1, max_logits // len(keys)))
        return normalizers.mean() - (queries * assigned_keys).sum(-1).mean()


def _prepare(logits: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape[-2:] != assignment.shape:
        raise ValueError(f'logits {tuple(logits.shape)} and assignment {tuple(assignment.shape)} differ')
    return at_least_fp32(logits), at_least_fp32(assignment.detach())


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _sum_over_processes(tensor: Tensor, group: 'dist.ProcessGroup | None') -> Tensor:
    return _SumOverProcesses.apply(tensor, group) if _is_distributed() else tensor


class _SumOverProcesses(Function):
    """All-reduced sum; every process's objective sends a gradient back to every summand."""

    @staticmethod
    def forward(ctx, tensor: Tensor, group: 'dist.ProcessGroup | None') -> Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _LogSumExpOfProducts(Function):
    """``logsumexp_j(q_i k_j)``, (n, d) and (N, d) -> (n,), in blocks of rows that the backward pass computes again."""

    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, rows: int) -> Tensor:
        result = torch.cat([(block @ keys.T).logsumexp(1) for block in queries.split(rows)])
        ctx.save_for_backward(queries, keys, result)
        ctx.rows = rows
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        queries, keys, result = ctx.saved_tensors
        grad_queries = torch.empty_like(queries)
        grad_keys = torch.zeros_like(keys) if ctx.needs_input_grad[1] else None
        blocks = zip(*[tensor.split(ctx.rows) for tensor in (queries, result, grad, grad_queries)], strict=True)
        with torch.autocast(queries.device.type, enabled=False):
            for block, normalizers, grads, grad_block in blocks:
                weights = (block @ keys.T).sub_(normalizers[:, None]).exp_().mul_(grads[:, None])
                torch.mm(weights, keys, out=grad_block)
                if grad_keys is not None:
                    grad_keys.addmm_(weights.T, block)
        return grad_queries, grad_keys, None
