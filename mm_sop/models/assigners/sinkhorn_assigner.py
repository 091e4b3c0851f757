"""Soft assignment of samples to the samples of a batch."""

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor

from mm_sop.functional import sinkhorn


@MODELS.register_module()
class SinkhornAssigner(BaseModule):
    """Balanced soft assignment by the cosines of encodings, see :func:`mm_sop.functional.sinkhorn`.

    Cosines are computed in float32, also under autocast: at this temperature, rounding to half precision would change
    the assignment by up to two percent.

    Raises:
        ValueError: If ``epsilon`` is not positive or there is no iteration.
    """

    def __init__(self, epsilon: float = 0.05, iterations: int = 3) -> None:
        super().__init__()
        if epsilon <= 0 or iterations < 1:
            raise ValueError(f'expected epsilon > 0 and iterations >= 1, got {epsilon} and {iterations}')
        self.epsilon = epsilon
        self.iterations = iterations

    @torch.no_grad()
    def forward(self, samples: Tensor, anchors: Tensor) -> Tensor:
        """Assign samples to anchors.

        Args:
            samples: Unit rows of this process, float32 or float64, (n, d).
            anchors: Unit rows of all processes, in the same order everywhere, (N, d).

        Returns:
            Assignment without gradient, (n, N); rows sum to 1.
        """
        with torch.autocast(samples.device.type, enabled=False):
            return sinkhorn(samples @ anchors.T, self.epsilon, self.iterations)

    def extra_repr(self) -> str:
        return f'epsilon={self.epsilon}, iterations={self.iterations}'
