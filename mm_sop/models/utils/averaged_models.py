"""Averaged models of MMEngine and MMPretrain in few launches, without waiting for the device."""

import math

import numpy as np
import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseAveragedModel, ExponentialMovingAverage
from mmpretrain.models.utils import CosineEMA
from torch import Tensor, nn

from mm_sop.models.utils.host_integer import HostInteger


class FusedAverage(BaseAveragedModel):
    """Averaged model that moves all tensors together and counts its steps on the host.

    Results and state dict are those of the parent. Subclasses implement :meth:`average` instead of ``avg_func``.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._host_steps = HostInteger()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Copy a model in the first step, and move towards it in every step that ``interval`` divides."""
        steps = self._host_steps.read(self.steps)
        own, sources = [
            network.state_dict() if self.update_buffers else dict(network.named_parameters())
            for network in (self.module, model)
        ]
        moved = [name for name, value in own.items() if steps == 0 or value.is_floating_point()]
        pair = [own[name].detach() for name in moved], [sources[name].detach() for name in moved]
        if steps == 0:
            torch._foreach_copy_(*pair)
        elif steps % self.interval == 0:
            self.average(*pair, steps)
        if not self.update_buffers:
            _copy_buffers(self.module, model)
        self._host_steps.write(self.steps, steps + 1)

    def average(self, averaged: list[Tensor], sources: list[Tensor], steps: int) -> None:
        """Move tensors towards their sources in place."""
        raise NotImplementedError


class FusedEMA(FusedAverage, ExponentialMovingAverage):
    """MMEngine's ``ExponentialMovingAverage``."""

    def average(self, averaged: list[Tensor], sources: list[Tensor], steps: int) -> None:
        torch._foreach_lerp_(averaged, sources, self.momentum)


class FusedCosineEMA(FusedAverage, CosineEMA):
    """MMPretrain's ``CosineEMA``."""

    def average(self, averaged: list[Tensor], sources: list[Tensor], steps: int) -> None:
        max_iters = MessageHub.get_current_instance().get_info('max_iters')
        # The parent computes the angle in float32.
        angle = np.float32(math.pi) * np.float32(steps) / np.float32(max_iters)
        momentum = self.end_momentum - (self.end_momentum - self.momentum) * (math.cos(angle) + 1) / 2
        torch._foreach_mul_(averaged, 1 - momentum)
        torch._foreach_add_(averaged, sources, alpha=momentum)


def _copy_buffers(target: nn.Module, source: nn.Module) -> None:
    by_type: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for pair in zip(target.buffers(), source.buffers(), strict=True):
        by_type.setdefault(pair[0].dtype, []).append(pair)
    for pairs in by_type.values():
        targets, sources = zip(*pairs, strict=True)
        torch._foreach_copy_(list(targets), list(sources))
