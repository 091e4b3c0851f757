"""Heads of SOP: the objectives on [CLS] and on masked patches."""

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor

from mm_sop.functional import koleo_loss, prototype_log_probs, sop_cls_loss, sop_mim_loss
from mm_sop.models.memory import Prototypes
from mm_sop.models.target_generators.sop_mim_target_generator import MIMTargets
from mm_sop.models.utils.diagnostics import assignment_diagnostics, support_diagnostics
from mm_sop.utils.distributed import gather_with_gradient


@MODELS.register_module()
class SOPHead(BaseModule):
    """[CLS] objective of SOP: student views predict the votes of the teacher's views for prototypes.

    Args:
        prototypes: Config of the :class:`PrototypeSampler` with its bank.
        teacher_temperature: Softmax temperature of the teacher; a hook may change it during training.
        koleo_weight: Weight of a KoLeo term on the student's global views, with neighbors searched in the global batch.
            The term is the sum over the two views, as in DINOv2; the code of SOP and MaSSL takes the mean and searches
            in the batch of a process: use half of its ``koleo_loss_weight``.
    """

    def __init__(
        self,
        prototypes: dict,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        loss_weight: float = 1.0,
        koleo_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if min(student_temperature, teacher_temperature) <= 0 or min(loss_weight, koleo_weight) < 0:
            raise ValueError(
                f'temperatures {student_temperature} and {teacher_temperature} must be positive, the weights '
                f'{loss_weight} and {koleo_weight} not negative'
            )
        self.prototypes = MODELS.build(prototypes)
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.loss_weight = loss_weight
        self.koleo_weight = koleo_weight

    def loss(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Compute the objective and diagnostics.

        Args:
            student: Embeddings of V views, global views first, (V, B, d).
            teacher: Embeddings of the two global views, (2, B, d).

        Returns:
            ``loss_cls``, ``loss_koleo`` if its weight is positive, and detached diagnostics.
        """
        prototypes = self.prototypes()
        # Separate from the teacher's rows: the backward pass of a joint product would include them.
        log_probs = self._log_probs(student, prototypes, self.student_temperature)
        with torch.no_grad():
            targets = self._log_probs(teacher, prototypes, self.teacher_temperature).exp()
        losses = dict(loss_cls=self.loss_weight * sop_cls_loss(log_probs, targets))
        if self.koleo_weight > 0:
            first, second = (koleo_loss(view, *gather_with_gradient(view)) for view in student[:2])
            losses['loss_koleo'] = self.koleo_weight * (first + second)
        losses.update(support_diagnostics(prototypes.support_weights))
        losses.update(assignment_diagnostics(log_probs[:2], targets, num_tasks=len(prototypes.members)))
        return losses

    @staticmethod
    def _log_probs(views: Tensor, prototypes: Prototypes, temperature: float) -> Tensor:
        """(V, B, d) -> (V, T B, M): tasks become part of the batch, since the loss is the mean over both."""
        num_views, batch, _ = views.shape
        log_probs = prototype_log_probs(views.flatten(0, 1), prototypes.members, prototypes.weights, temperature)
        # (T, V B, M) -> (T, V, B, M) -> (V, T B, M)
        return log_probs.unflatten(1, (num_views, batch)).transpose(0, 1).flatten(1, 2)


@MODELS.register_module()
class SOPMIMHead(BaseModule):
    """Masked-image-modeling objective of SOP on the masked tokens."""

    def __init__(self, student_temperature: float = 0.1, loss_weight: float = 1.0) -> None:
        super().__init__()
        if student_temperature <= 0 or loss_weight < 0:
            raise ValueError(
                f'student_temperature={student_temperature} must be positive, loss_weight={loss_weight} not negative'
            )
        self.student_temperature = student_temperature
        self.loss_weight = loss_weight

    def loss(self, student: Tensor, targets: MIMTargets, token_weights: Tensor) -> dict[str, Tensor]:
        """Compute ``loss_mim``.

        Args:
            student: Embeddings of the masked tokens, (m, d).
            targets: The teacher's votes for the same tokens in T tasks.
            token_weights: (m,), see :func:`mm_sop.functional.sop_mim_loss`.
        """
        prototypes = targets.prototypes
        log_probs = prototype_log_probs(student, prototypes.members, prototypes.weights, self.student_temperature)
        num_tasks = len(log_probs)
        token_weights = token_weights.repeat(num_tasks) / num_tasks
        loss = sop_mim_loss(log_probs.flatten(0, 1), targets.probs.flatten(0, 1), token_weights)
        return dict(loss_mim=self.loss_weight * loss)
