"""LARS without host synchronization, in the forms of the published recipes."""

from collections.abc import Callable, Iterable

import torch
from mmpretrain.registry import OPTIMIZERS
from torch import Tensor
from torch.optim import Optimizer

from mm_sop.utils.distributed import norms_of, own_shards


@OPTIMIZERS.register_module()
class FastLARS(Optimizer):
    """Layer-wise adaptive rate scaling for SGD, of `Large Batch Training of Convolutional Networks`_.

    ``v <- m v + trust (g + b w)`` and ``w <- w - lr v``, where ``trust = eta |w| / |g + b w|`` is the trust ratio of a
    tensor, or 1 if a norm is zero. Biases and parameters of normalization layers (one-dimensional tensors) have no
    trust ratio. This is the optimizer in the authors' code of BYOL, MoCo v3, DINO and Barlow Twins. Others differ:

    ============================  ===================  ==================  ========
    code                          ``lr_in_momentum``   ``separate_norms``  ``clip``
    ============================  ===================  ==================  ========
    BYOL, MoCo v3, DINO           False                False               False
    solo-learn                    False                True                as named
    SimCLR                        True                 False               False
    MMPretrain, LARS's paper      True                 True                False
    ============================  ===================  ==================  ========

    The norms stay on the device, whereas MMPretrain's LARS synchronizes with the host twice per tensor. States of that
    optimizer can be loaded.

    .. _Large Batch Training of Convolutional Networks: https://arxiv.org/abs/1708.03888

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        momentum: m.
        weight_decay: b.
        eta: Trust coefficient.
        clip: Whether the trust ratio is ``min(trust / lr, 1)``, as for small batches in solo-learn: it then never
            lengthens a step.
        eps: Added to the denominator of the trust ratio of separate norms.
        lr_in_momentum: Whether steps are multiplied by the learning rate before they enter the velocity, which then
            contains past learning rates: ``v <- m v + lr trust (g + b w)`` and ``w <- w - v``.
        separate_norms: Whether ``trust = eta |w| / (|g| + b |w| + eps)``.
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
        lr_in_momentum: bool = False,
        separate_norms: bool = False,
    ) -> None:
        options = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta, eps=eps)
        if min(options.values()) < 0:
            raise ValueError(f'arguments of FastLARS must not be negative, got {options}')
        super().__init__(params, dict(options, clip=clip, lr_in_momentum=lr_in_momentum, separate_norms=separate_norms))

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            # Older checkpoints lack these options; they were trained this way.
            group.setdefault('lr_in_momentum', True)
            group.setdefault('separate_norms', True)
            # Those of MMPretrain's LARS have neither of these.
            group.setdefault('clip', False)
            group.setdefault('eps', 1e-8)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]  # tensors
        """Update the parameters that have a gradient, and return the loss of the closure, if there is one."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group['params'] if parameter.grad is not None]
            for adapted in (True, False):
                parameters = [parameter for parameter in trained if (parameter.ndim > 1) == adapted]
                if parameters:
                    self._update(parameters, group, adapted)
        return loss

    def _update(self, parameters: list[Tensor], group: dict, adapted: bool) -> None:
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        steps = list(torch._foreach_add(grads, parameters, alpha=group['weight_decay']))
        if adapted:
            weight_norm = norms_of(parameters)
            update_norm = norms_of(grads if group['separate_norms'] else steps)
            separate = update_norm + group['weight_decay'] * weight_norm + group['eps']
            trust = group['eta'] * weight_norm / (separate if group['separate_norms'] else update_norm)
            if group['clip']:
                trust = (trust / group['lr']).clamp(max=1)
            trust = trust.where((weight_norm > 0) & (update_norm > 0), 1.0)
            torch._foreach_mul_(own_shards(steps), list(trust.unbind()))
        entering, leaving = (group['lr'], 1.0) if group['lr_in_momentum'] else (1.0, group['lr'])
        torch._foreach_mul_(steps, entering)
        for parameter, step in zip(parameters, steps, strict=True):
            if 'momentum_buffer' not in self.state[parameter]:
                self.state[parameter]['momentum_buffer'] = torch.zeros_like(step)
        velocities = [self.state[parameter]['momentum_buffer'] for parameter in parameters]
        torch._foreach_mul_(velocities, group['momentum'])
        torch._foreach_add_(velocities, steps)
        torch._foreach_sub_(parameters, velocities, alpha=leaving)
