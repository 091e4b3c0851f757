"""Probabilities of embeddings over self-organizing prototypes."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Largest block of the member logits that is held at once, in elements (16 MiB in fp32).
_LOGIT_BLOCK = 2**22


def prototype_log_probs(embeddings: Tensor, members: Tensor, weights: Tensor, temperature: float) -> Tensor:
    r"""Compute log-probabilities over prototypes that vote with all their members.

    With S the softmax of the embedding over the members of all prototypes and w the members' weights, the vote
    ``P = S Y`` of SOP (section 3) has the closed form

    .. math:: P_j = A_j + \frac{\sum_i B_i - B_j}{M - 1},\quad
              A_j = \sum_{r \in j} S_r w_r,\quad B_j = \sum_{r \in j} S_r (1 - w_r),

    so the dense contribution matrix Y is never built. Members are processed in blocks with a running maximum and sum,
    and the backward pass computes the blocks again: memory grows with n x M, not with n x M x c.

    Args:
        embeddings: Unit rows, (n, d).
        members: Unit members of every prototype, (M, c, d), or (T, M, c, d) for T tasks. Constants.
        weights: Weights of the members in [0, 1], (M, c), or (T, M, c). Constants.
        temperature: Softmax temperature, positive.

    Returns:
        Log-probabilities in fp32 (fp64 for fp64 embeddings), (n, M), or (T, n, M). Gradients reach the embeddings
        only. Probabilities are at least ``tiny / eps`` of the type (1e-31 in fp32).

    Raises:
        ValueError: If the shapes do not fit, M < 2 or the temperature is not positive.
    """
    _check_prototypes(embeddings, members, weights, temperature)
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    single_task = members.ndim == 3
    members = members.detach().to(dtype)
    weights = weights.detach().to(dtype)
    if single_task:
        members, weights = members.unsqueeze(0), weights.unsqueeze(0)
    with torch.autocast(embeddings.device.type, enabled=False):
        log_probs = _PrototypeLogProbs.apply(embeddings.to(dtype), members, weights, float(temperature))
    return log_probs.squeeze(0) if single_task else log_probs


class _PrototypeLogProbs(torch.autograd.Function):
    """Blockwise forward and backward pass of :func:`prototype_log_probs`, with a leading dimension of tasks."""

    @staticmethod
    def forward(ctx, embeddings: Tensor, members: Tensor, weights: Tensor, temperature: float) -> Tensor:
        num_tasks, num_prototypes = members.shape[:2]
        maximum = embeddings.new_full((num_tasks, len(embeddings)), -torch.inf)
        total = torch.zeros_like(maximum)
        # A and B of the closed form, unnormalized; t task, n embedding, m prototype, c member.
        own_votes: list[Tensor] = []
        other_votes: list[Tensor] = []
        for block, weight in _blocks(embeddings, members, weights):
            logits = _member_logits(embeddings, block, temperature)
            running = torch.maximum(maximum, logits.flatten(2).amax(-1))
            mass = logits.sub_(running[..., None, None]).exp_()
            decay = (maximum - running).exp_()
            for previous in (*own_votes, *other_votes):
                previous.mul_(decay.unsqueeze(-1))
            own_votes.append(torch.einsum('tnmc,tmc->tnm', mass, weight))
            other_votes.append(torch.einsum('tnmc,tmc->tnm', mass, 1 - weight))
            total = total * decay + (own_votes[-1].sum(-1) + other_votes[-1].sum(-1))
            maximum = running
        own, other = _join(own_votes), _join(other_votes)
        spread = other.sum(-1, keepdim=True) - other
        probs = own.add_(spread.div_(num_prototypes - 1)).div_(total.unsqueeze(-1))
        limits = torch.finfo(probs.dtype)
        probs = probs.clamp_min_(limits.tiny / limits.eps)
        ctx.temperature = temperature
        ctx.save_for_backward(embeddings, members, weights, probs, maximum + total.log())
        return probs.log()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_log_probs: Tensor):
        embeddings, members, weights, probs, log_normalizer = ctx.saved_tensors
        num_prototypes = members.shape[1]
        grad_probs = grad_log_probs / probs
        rest = (grad_probs.sum(-1, keepdim=True) - grad_probs).div_(num_prototypes - 1)
        # P is linear in the member probabilities S, hence sum_r S_r dL/dS_r = sum_j P_j dL/dP_j.
        center = grad_log_probs.sum(-1)[..., None, None]
        grad_embeddings = torch.zeros_like(embeddings)
        start = 0
        for block, weight in _blocks(embeddings, members, weights):
            stop = start + block.shape[1]
            mass = _member_logits(embeddings, block, ctx.temperature)
            mass.sub_(log_normalizer[..., None, None]).exp_()
            grad = torch.lerp(rest[..., start:stop, None], grad_probs[..., start:stop, None], weight.unsqueeze(1))
            grad.sub_(center).mul_(mass)
            # (T, n, m, c) -> (n, T m c), the order of the flattened members
            grad_embeddings.addmm_(grad.transpose(0, 1).flatten(1), block.reshape(-1, block.shape[-1]))
            start = stop
        return grad_embeddings.div_(ctx.temperature), None, None, None


def _blocks(embeddings: Tensor, members: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    tasks, _, size, _ = members.shape
    width = max(1, _LOGIT_BLOCK // max(1, tasks * len(embeddings) * size))
    return zip(members.split(width, dim=1), weights.split(width, dim=1), strict=True)


def _member_logits(embeddings: Tensor, members: Tensor, temperature: float) -> Tensor:
    """One matrix product for all tasks: (n, d) x (T, m, c, d) -> (T, n, m, c)."""
    tasks, prototypes, size, width = members.shape
    logits = torch.matmul(embeddings / temperature, members.reshape(tasks, -1, width).transpose(1, 2))
    return logits.view(tasks, len(embeddings), prototypes, size)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _check_prototypes(embeddings: Tensor, members: Tensor, weights: Tensor, temperature: float) -> None:
    if embeddings.ndim != 2 or members.ndim not in (3, 4) or members.shape[-1] != embeddings.shape[-1]:
        raise ValueError(
            f'expected embeddings (n, d) and members (M, c, d) or (T, M, c, d), got {tuple(embeddings.shape)} and '
            f'{tuple(members.shape)}'
        )
    if weights.shape != members.shape[:-1]:
        raise ValueError(f'weights {tuple(weights.shape)} do not match members {tuple(members.shape)}')
    if members.shape[-3] < 2:
        raise ValueError('at least 2 prototypes are needed: the vote of a member is spread over the others')
    if not temperature > 0:
        raise ValueError(f'temperature must be positive, got {temperature}')
