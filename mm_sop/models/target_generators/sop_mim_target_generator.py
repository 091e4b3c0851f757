"""Targets of SOP's masked image modeling."""

from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor

from mm_sop.functional import prototype_log_probs
from mm_sop.models.memory import Prototypes


class MIMTargets(NamedTuple):
    """Votes of the teacher.

    Attributes:
        probs: Probabilities over the prototypes, (T, m, M).
        prototypes: The prototypes, to which the student is compared as well.
    """

    probs: Tensor
    prototypes: Prototypes


@MODELS.register_module()
class SOPMIMTargetGenerator(BaseModule):
    """Turns the teacher's patch embeddings into votes for local prototypes from a bank of patch embeddings.

    Args:
        prototypes: Config of the :class:`PrototypeSampler` with its bank.
        teacher_temperature: Softmax temperature; a hook may change it during training. The released implementation
            uses that of the [CLS] objective.
    """

    def __init__(self, prototypes: dict, teacher_temperature: float = 0.04) -> None:
        super().__init__()
        if teacher_temperature <= 0:
            raise ValueError(f'teacher_temperature={teacher_temperature} must be positive')
        self.prototypes = MODELS.build(prototypes)
        self.teacher_temperature = teacher_temperature

    @torch.no_grad()
    def forward(self, embeddings: Tensor) -> MIMTargets:
        """Vote for the prototypes of this step, unit rows (m, d) -> :class:`MIMTargets`."""
        prototypes = self.prototypes()
        log_probs = prototype_log_probs(embeddings, prototypes.members, prototypes.weights, self.teacher_temperature)
        return MIMTargets(log_probs.exp(), prototypes)
