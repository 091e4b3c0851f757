"""Balanced soft assignment by Sinkhorn-Knopp."""

import torch
import torch.distributed as dist
from torch import Tensor

# exp(-2 / epsilon), the kernel of opposite vectors, has to stay far above the smallest number of its type.
_SMALLEST_EPSILON, _FLOAT32_EPSILON = 0.003, 0.025


@torch.no_grad()
def sinkhorn(
    scores: Tensor, epsilon: float = 0.05, iterations: int = 3, group: 'dist.ProcessGroup | None' = None
) -> Tensor:
    """Assign samples softly to anchors that all receive the same total weight (Cuturi, 2013), as ReSA does.

    ``A = diag(u) M diag(v)`` with ``M = exp((S - 1) / epsilon)``. From ``u = 1``, every iteration balances the anchors
    over the samples of all processes, ``v = 1 / M^T u``, then the samples, ``u = 1 / M v``. Only these vectors change,
    and each iteration sums one N-vector over the processes. The constant shift cancels in the first division.

    Args:
        scores: Cosines S of this process's samples with the anchors of all processes, (n, N), at most 1 so that nothing
            overflows. All processes have the same columns. Computed in float32 at least, also under autocast.
        epsilon: Temperature, at least 0.003; smaller values give sharper assignments. Below 0.025 the smallest entries
            of M leave the range of float32, and float64 is used.
        iterations: Number of iterations.
        group: Processes that hold the samples; None for all of them, or for this one alone without torch.distributed.

    Returns:
        Assignment A, (n, N): rows sum to 1, and the columns of all processes together nearly to (samples / N). No
        gradient flows.

    Raises:
        ValueError: If the scores are not a matrix, ``epsilon`` is too small or there is no iteration.

    Example:
        >>> assignment = sinkhorn(torch.tensor([[1.0, 0.8], [0.9, 0.1]]))
        >>> assignment.sum(1)
        tensor([1.0000, 1.0000])
        >>> assignment.argmax(1)  # both samples prefer the first anchor, but the anchors are balanced
        tensor([1, 0])
    """
    if scores.ndim != 2:
        raise ValueError(f'scores must be a matrix of samples by anchors, got shape {tuple(scores.shape)}')
    if epsilon < _SMALLEST_EPSILON or iterations < 1:
        raise ValueError(f'expected epsilon >= {_SMALLEST_EPSILON} and iterations >= 1, got {epsilon} and {iterations}')
    result_type = torch.promote_types(scores.dtype, torch.float32)
    with torch.autocast(scores.device.type, enabled=False):
        scores = scores.to(torch.float64 if epsilon < _FLOAT32_EPSILON else result_type)
        kernel = ((scores - 1) / epsilon).exp_()
        row_scale = kernel.new_ones(len(kernel))
        for _ in range(iterations):
            column_sums = kernel.T @ row_scale
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(column_sums, group=group)
            column_scale = column_sums.reciprocal_()
            row_scale = (kernel @ column_scale).reciprocal_()
        return kernel.mul_(row_scale[:, None]).mul_(column_scale).to(result_type)
