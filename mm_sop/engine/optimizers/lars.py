"""LARS without host synchronisation, with optional clipping of the trust ratio."""

from collections.abc import Callable, Iterable

import torch
from mmpretrain.registry import OPTIMIZERS
from torch import Tensor
from torch.optim import Optimizer


@OPTIMIZERS.register_module()
class FastLARS(Optimizer):
    """Layer-wise adaptive rate scaling for SGD, of `Large Batch Training of Convolutional Networks`_, algorithm 1.

    ``v <- m v + rate (g + b w)`` and ``w <- w - v`` with ``rate = lr trust`` and
    ``trust = eta |w| / (|g| + b |w| + eps)``, the trust ratio of each tensor, or 1 where a norm is zero. Biases and
    parameters of normalisation layers (tensors of one dimension) have no trust ratio: their rate is ``lr``.

    The update is that of MMPretrain's LARS, whose norms make the host wait for the device twice for each tensor.

    .. _Large Batch Training of Convolutional Networks: https://arxiv.org/abs/1708.03888

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        momentum: m.
        weight_decay: b.
        eta: Trust coefficient.
        clip: Whether the rate is ``min(trust, lr)`` instead, as for small batches in solo-learn: the trust ratio then
            only ever shortens steps.
        eps: Keeps the trust ratio finite.

    Raises:
        ValueError: An argument is negative.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        clip: bool = False,
        eps: float = 1e-8,
    ) -> None:
        options = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta, eps=eps)
        if min(options.values()) < 0:
            raise ValueError(f'arguments of FastLARS must not be negative, got {options}')
        super().__init__(params, dict(options, clip=clip))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update the parameters that have a gradient.

        Args:
            closure: Computes the loss again.

        Returns:
            Loss of the closure, if there is one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group['params'] if parameter.grad is not None]
            for adapted in (True, False):
                parameters = [parameter for parameter in trained if (parameter.ndim > 1) == adapted]
                if parameters:
                    self._update(parameters, group, adapted)
        return loss

    def _update(self, parameters: list[Tensor], group: dict, adapted: bool) -> None:
        grads = [parameter.grad for parameter in parameters]
        steps = torch._foreach_add(grads, parameters, alpha=group['weight_decay'])
        if adapted:
            torch._foreach_mul_(steps, _rates(parameters, grads, group).unbind())
        else:
            torch._foreach_mul_(steps, group['lr'])
        states = [self.state[parameter] for parameter in parameters]
        for state, step in zip(states, steps, strict=True):
            if 'momentum_buffer' not in state:
                state['momentum_buffer'] = torch.zeros_like(step)
        velocities = [state['momentum_buffer'] for state in states]
        torch._foreach_mul_(velocities, group['momentum'])
        torch._foreach_add_(velocities, steps)
        torch._foreach_sub_(parameters, velocities)


def _rates(parameters: list[Tensor], grads: list[Tensor], group: dict) -> Tensor:
    """Learning rate of every tensor, on the device."""
    weight_norm, grad_norm = (torch.stack(torch._foreach_norm(tensors)) for tensors in (parameters, grads))
    trust = group['eta'] * weight_norm / (grad_norm + group['weight_decay'] * weight_norm + group['eps'])
    rate = trust.clamp(max=group['lr']) if group['clip'] else trust * group['lr']
    return rate.where((weight_norm > 0) & (grad_norm > 0), group['lr'])
