"""Siamese algorithms: a student predicts its teacher's output for another view."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.functional import normalize

from mm_sop.models.heads.local_global_head import Branch
from mm_sop.models.selfsup.teacher_student import TeacherStudent, remove_mask_token
from mm_sop.models.utils.coupling import couples_samples
from mm_sop.models.utils.diagnostics import key_diagnostics, locality_diagnostics
from mm_sop.models.utils.tokens import split_features, to_map


class SiameseTeacher(TeacherStudent):
    """A student whose predictions are compared with its teacher's targets from other views of the same images.

    Projector (``neck``) and predictor or loss (``head``) define the algorithm. With a ``local_head`` cells of one view
    are compared with the vector of the other as well, which turns any base into CO-SSL.

    :class:`TeacherHook` updates the teacher after a step of the optimizer, so that accumulated gradients come from one
    teacher.

    Args:
        local_head: Config of a :class:`LocalGlobalHead`. With None or weight 0 none is built: the algorithm equals the
            base bit for bit, including random draws.
        **kwargs: Arguments of :class:`TeacherStudent`. The backbone, any of MMPretrain, gives tokens or a feature map;
            the neck works on pooled vectors, such as ``NonLinearNeck`` with ``with_avg_pool=False`` or
            :class:`DINONeck`; the head is a :class:`SiameseHead`.

    Raises:
        ValueError: A neck has its own pooling.
    """

    student_modules = ('backbone', 'neck', 'local_projector')
    joint_views = False
    """Whether all views of one size pass together even through networks with BatchNorm, which then sees all of them.

    Networks that treat every sample by itself get views of one size together in any case."""

    def __init__(self, *, local_head: dict | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        remove_mask_token(self.backbone)
        self.local_head: Any = None
        if local_head is not None and local_head.get('weight') != 0:
            # The networks of the base start with the same weights as without a local head.
            with torch.random.fork_rng(devices=[]):
                self.local_head = MODELS.build(local_head)
            self.local_head.make_targets = copy.deepcopy(self.head.make_targets)
        if any(getattr(module, 'with_avg_pool', False) for module in self.modules()):
            raise ValueError('projectors and predictors work on pooled vectors and cells: set with_avg_pool=False')
        self.teacher = self.build_teacher()

    @property
    def local_projector(self) -> nn.Module | None:
        """Local projector that the teacher follows, or None."""
        return None if self.local_head is None else self.local_head.target_projector

    def loss(self, inputs: Sequence[Tensor], data_samples: Sequence[DataSample] | None = None) -> dict[str, Tensor]:
        """Compare all views of the student with the two global views of the teacher; compute diagnostics.

        Args:
            inputs: Views, (B, C, H, W) each, two global views first; the others are for the student alone.
            data_samples: Not used.
        """
        self.check_views(inputs)
        student = self.student_branch(inputs)
        teacher = self.teacher_branch(inputs[:2])
        losses = dict(loss_global=self.head.loss(student.outputs, teacher.outputs))
        if self.local_head is not None:
            local_loss = self.local_loss(self.head.pair_loss, student, teacher)
            losses = self.local_head.combine(losses['loss_global'], local_loss)
        losses.update(key_diagnostics(normalize(teacher.outputs[1].float(), dim=-1)))
        losses.update(locality_diagnostics(student.maps[0]))
        return losses

    def student_branch(self, views: Sequence[Tensor]) -> Branch:
        """Outputs of the student for all views: vectors, maps, and predictions, (B, d)."""
        networks = self.neck, self.head.predictor
        vectors, maps = self._encode(self.backbone, views)
        local_networks = networks
        if self.local_head is not None and self.local_head.projector is not None:
            local_networks = self.local_head.projector, self.local_head.predictor
        return Branch(vectors, maps, self._project(networks, vectors), partial(self._project, local_networks))

    @torch.no_grad()
    def teacher_branch(self, views: Sequence[Tensor]) -> Branch:
        """Outputs of the teacher for the global views: vectors, maps, and targets, (B, d)."""
        vectors, maps = self._encode(self.teacher['backbone'], views)
        projections = self._project([self.teacher['neck']], vectors)
        targets = self.head.make_targets(torch.stack(list(projections))).unbind()
        local_projector = self.teacher['local_projector' if 'local_projector' in self.teacher else 'neck']
        return Branch(vectors, maps, targets, partial(self._project, [local_projector]))

    def local_loss(self, pair_loss: Callable[[Tensor, Tensor], Tensor], student: Branch, teacher: Branch) -> Tensor:
        """Compare cells of each global view with the vector of the other, with the loss weight of the base."""
        global_views = student._replace(vectors=student.vectors[:2], maps=student.maps[:2], outputs=student.outputs[:2])
        return self.head.loss_weight * self.local_head.loss(pair_loss, global_views, teacher)

    def _encode(self, backbone: nn.Module, views: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Global vectors, (B, C), and local maps, (B, C, h, w), of all views."""
        vectors: list[Tensor] = []
        maps: list[Tensor] = []
        for group in self._groups(backbone, views):
            global_features, local_features = split_features(backbone(_concatenate(group)))
            vectors += global_features.chunk(len(group))
            maps += to_map(local_features, group[0].shape[-2:]).chunk(len(group))
        return vectors, maps

    def _project(self, networks: Sequence[nn.Module | None], rows: Sequence[Tensor]) -> Sequence[Tensor]:
        """Apply necks one after the other to the vectors of each view, (B, C) or (B, n, C); None is the identity."""
        for network in networks:
            if network is None:
                continue
            outputs: list[Tensor] = []
            for group in self._groups(network, rows):
                batch = _concatenate(group)
                output = network((batch.flatten(0, -2),))[0]
                outputs += output.unflatten(0, batch.shape[:-1]).chunk(len(group))
            rows = outputs
        return rows

    def _groups(self, network: nn.Module, views: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Group views that pass through a network together: consecutive ones of one shape, or each view alone."""
        if not self.joint_views and couples_samples(network):
            return ([view] for view in views)
        return (list(group) for _, group in groupby(views, key=lambda view: view.shape))


def _concatenate(views: list[Tensor]) -> Tensor:
    return views[0] if len(views) == 1 else torch.cat(views)
