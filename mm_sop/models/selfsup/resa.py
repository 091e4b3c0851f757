"""ReSA: soft assignments from encodings guide embeddings."""

from collections.abc import Sequence
from functools import partial

import torch
from mmengine.dist import get_world_size
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from mm_sop.functional.precision import unit_vectors
from mm_sop.models.heads.local_global_head import Branch
from mm_sop.models.selfsup.siamese import SiameseTeacher
from mm_sop.models.utils.diagnostics import (
    batch_assignment_diagnostics,
    class_diagnostics,
    key_diagnostics,
    locality_diagnostics,
    retrieval_diagnostics,
)
from mm_sop.utils.distributed import gather_in_sample_order, gather_with_gradient, own_samples

ASSIGNMENT_SOURCES = ('online_momentum', 'momentum', 'online')


@MODELS.register_module()
class ReSA(SiameseTeacher):
    """Clustering Properties of Self-Supervised Learning (ICML 2025): representation self-assignment.

    Encodings, the pooled outputs of the backbone, cluster better than embeddings. Within every batch, the encodings of
    the weakly augmented view assign each sample softly to all samples, itself included, balanced by Sinkhorn-Knopp.
    This assignment is the target of a cross-entropy between the student's and the teacher's embeddings.

    Batches hold the **weak view first**, then the strong view, then local crops. Views pass through networks with
    BatchNorm one at a time, so that every view is normalized by its own statistics, and through others together. Over
    several CUDA processes, set ``sync_bn='torch'`` in the config for statistics of the global batch; on CPU each
    process has its own.

    The teacher stays in train mode and collects its own running statistics. ReSA needs the teacher of *before* the
    step: use ``TeacherHook(lead=1)``, which updates it after a step with the momentum of the next one.

    Args:
        assigner: Config of the assigner. Defaults to :class:`SinkhornAssigner` with ReSA's settings.
        assignment_source: Encodings that are compared: ``'online_momentum'``, those of the student with those of the
            teacher, or ``'momentum'`` or ``'online'`` for those of one network with each other.
        use_teacher: False for the plain form without a second network: the student's weak view against its own strong
            view, with gradients to both. It needs ``assignment_source='online'``, a head without predictor, and no
            local crops; the paper uses ``symmetric=True`` in the head.
        **kwargs: Arguments of :class:`SiameseTeacher`; the head is a :class:`ReSAHead`. A ``local_head`` adds the
            local-global term of CO-SSL under the same assignment.

    Raises:
        ValueError: If the arguments are incompatible.
    """

    def __init__(
        self,
        *,
        assigner: dict | None = None,
        assignment_source: str = 'online_momentum',
        use_teacher: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.assigner = MODELS.build(assigner or dict(type='SinkhornAssigner'))
        self.assignment_source = assignment_source
        self.use_teacher = use_teacher
        self._check_arguments()
        if not use_teacher:
            # Evaluation and export expect a teacher.
            self.teacher = self.student

    def loss(self, inputs: Sequence[Tensor], data_samples: Sequence[DataSample] | None = None) -> dict[str, Tensor]:
        """Compute the objective, and diagnostics that do not enter it.

        Args:
            inputs: Views, (n, C, H, W) each: weak, strong, local crops.
            data_samples: Labels, if all have one, are used for a diagnostic alone.
        """
        self.check_views(inputs)
        student = self.student_branch(inputs)
        encoding = unit_vectors(student.vectors[0].detach())
        embeddings = [unit_vectors(predictions) for predictions in student.outputs]
        if self.use_teacher:
            teacher = self.teacher_branch(inputs[:2])
            samples, anchors, keys = self._teacher_targets(encoding, teacher)
        else:
            samples, anchors, keys = self._plain_targets(encoding, embeddings)
        assignment = self.assigner(samples, anchors)
        losses = self.head.loss(embeddings if self.use_teacher else embeddings[:1], keys, assignment)
        if self.local_head is not None:
            local_loss = self.local_loss(partial(self.head.pair_loss, assignment=assignment), student, teacher)
            losses.update(self.local_head.combine(losses.pop('loss_resa'), local_loss))
            losses.update(locality_diagnostics(student.maps[0]))
        own_columns = own_samples(torch.arange(len(anchors), device=anchors.device))
        losses.update(batch_assignment_diagnostics(assignment, own_columns, anchors))
        losses.update(retrieval_diagnostics(embeddings[0], keys[1], own_columns))
        losses.update(key_diagnostics(keys[1]))
        if data_samples and all('gt_label' in sample for sample in data_samples):
            labels = torch.cat([sample.gt_label for sample in data_samples]).to(assignment.device)
            losses.update(class_diagnostics(assignment[:, own_columns], labels))
        return losses

    @torch.no_grad()
    def _teacher_targets(self, encoding: Tensor, teacher: Branch) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """Samples (n, D), anchors (N, D) and keys (N, d) of both global views, gathered in one collective."""
        teacher_encoding = unit_vectors(teacher.vectors[0])
        samples = teacher_encoding if self.assignment_source == 'momentum' else encoding
        anchors = encoding if self.assignment_source == 'online' else teacher_encoding
        packed = [anchors, *map(unit_vectors, teacher.outputs)]
        gathered = gather_in_sample_order(torch.cat(packed, dim=1))
        anchors, *keys = gathered.split([part.shape[1] for part in packed], dim=1)
        return samples, anchors, dict(enumerate(keys))

    @staticmethod
    def _plain_targets(encoding: Tensor, embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """Targets without a teacher: keys are the embeddings of the strong view, with gradient."""
        if len(embeddings) > 2:
            raise ValueError(f'without a teacher ReSA has no use for local crops, got {len(embeddings)} views')
        rank_order, _ = gather_with_gradient(embeddings[1])
        # (W B, d), process by process -> (B W, d), in the order of the global batch
        keys = rank_order.unflatten(0, (get_world_size(), -1)).transpose(0, 1).flatten(0, 1)
        return encoding, gather_in_sample_order(encoding), {1: keys}

    def _check_arguments(self) -> None:
        if self.assignment_source not in ASSIGNMENT_SOURCES:
            raise ValueError(f'assignment_source must be one of {ASSIGNMENT_SOURCES}, got {self.assignment_source!r}')
        if not self.use_teacher and self.local_head is not None:
            raise ValueError('use_teacher=False does not go with a local_head, whose targets come from the teacher')
        if not self.use_teacher and (self.assignment_source != 'online' or self.head.predictor is not None):
            raise ValueError(
                "use_teacher=False needs assignment_source='online' and a head without predictor, got "
                f'{self.assignment_source!r} and {type(self.head.predictor).__name__}'
            )
