"""Head of DINO."""

import torch
from mmengine.dist import all_reduce, get_world_size
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from mm_sop.functional import dino_loss, dino_targets, update_center
from mm_sop.models.heads.siamese_head import SiameseHead


class CenteredTargets(nn.Module):
    """Turns the teacher's scores into targets, and tracks their running mean over all processes.

    The mean of this step's scores is used for the targets of the next step. ``momentum`` is in [0, 1].
    """

    center: Tensor

    def __init__(self, num_prototypes: int, temperature: float = 0.04, momentum: float = 0.9) -> None:
        super().__init__()
        if temperature <= 0 or not 0 <= momentum <= 1:
            raise ValueError(f'expected temperature > 0 and momentum in [0, 1], got {temperature} and {momentum}')
        self.temperature = temperature
        self.momentum = momentum
        self.register_buffer('center', torch.zeros(num_prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor) -> Tensor:
        """Compute the targets of all views of a step, (..., K) -> (..., K)."""
        targets = dino_targets(logits, self.center, self.temperature)
        if self.training:
            mean = logits.flatten(0, -2).to(self.center.dtype).mean(0)
            all_reduce(mean)
            self.center.copy_(update_center(self.center, mean / get_world_size(), self.momentum))
        return targets


@MODELS.register_module()
class DINOHead(SiameseHead):
    """Cross-entropy between distributions over learned prototypes (DINO, equation 3).

    The scores of the prototypes come from :class:`DINONeck`; there is no predictor.

    Args:
        num_prototypes: Number K of prototypes, that of the neck.
        teacher_temperature: Temperature of the teacher; a hook may change it during training.
        center_momentum: Momentum of the center.
    """

    def __init__(
        self,
        num_prototypes: int = 65536,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        center_momentum: float = 0.9,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight=loss_weight)
        self.student_temperature = student_temperature
        self.make_targets = CenteredTargets(num_prototypes, teacher_temperature, center_momentum)

    def pair_loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Compute the cross-entropy, see :meth:`SiameseHead.pair_loss`."""
        return dino_loss(predictions, targets, self.student_temperature)
