"""The local-global term of CO-SSL, for any Siamese algorithm."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from mm_sop.functional import grid_cells, uniform_cells
from mm_sop.models.heads.siamese_head import mean_over_pairs
from mm_sop.models.utils.shared_random import SharedRandom

_SELECTIONS = dict(grid=grid_cells, uniform=uniform_cells)
_CHOICES = dict(
    directions=('both', 'local_to_global', 'global_to_local'),
    space=('global', 'own'),
    combination=('convex', 'additive'),
    selection=tuple(_SELECTIONS),
)


class Branch(NamedTuple):
    """Outputs of the student or the teacher for two views, as :class:`LocalGlobalHead` needs them.

    Attributes:
        vectors: Global representation of each view, (B, C).
        maps: Local representations of each view, (B, C, h, w).
        outputs: What the base compares, for each view, (B, d): predictions of the student, targets of the teacher.
        project: Local projector, of the student with its predictor: maps cells of each view, (B, n, C), to
            (B, n, d), and vectors, (B, C), to (B, d).
    """

    vectors: Sequence[Tensor]
    maps: Sequence[Tensor]
    outputs: Sequence[Tensor]
    project: Callable[[Sequence[Tensor]], Sequence[Tensor]]


@MODELS.register_module()
class LocalGlobalHead(BaseModule):
    """Compares unpooled cells of one view with the pooled vector of the other (CO-SSL, arXiv 2501.02860).

    A linear layer on every cell is a 1x1 convolution, and BatchNorm over the cells of one call is BatchNorm over the
    map: local projector and predictor are the same necks as those of the base, applied to cells.

    **Use.** An algorithm needs a ``pair_loss(predictions, targets)`` that returns the loss between two views, averaged
    over images for (B, d) against (B, d), and over images and cells for (B, n, d) against (B, d) and for (B, d) against
    (B, n, d); :class:`SiameseHead` and its subclasses have one. In each step the algorithm passes a :class:`Branch` of
    each network. The teacher follows :attr:`target_projector`, if there is one. In short::

        local_loss = self.local_head.loss(pair_loss, student_branch, teacher_branch)
        losses = self.local_head.combine(global_loss, local_loss)

    :class:`~mm_sop.models.selfsup.siamese.SiameseTeacher` does all of it.

    Args:
        projector: Config of the local projector, a neck of MMPretrain on vectors; None to pass cells through the
            base's projector and predictor (one shared head).
        predictor: Config of the local predictor; None for none. Not with a shared head.
        weight: w_s, in (0, 1] with ``'convex'``, positive with ``'additive'``. With weight 0 an algorithm builds no
            local head, and equals the base bit for bit.
        combination: ``'convex'``, ``(1 - w) global + w local``, or ``'additive'``, ``global + w local``.
        directions: ``'local_to_global'`` (the student's cells predict the teacher's vector), ``'global_to_local'``
            (the student's vector predicts the teacher's cells), or the mean of ``'both'``. With
            ``'global_to_local'`` alone in the global space the local projector is not trained: it stays as initialized.
        space: ``'global'``: cells are compared with outputs of the base's heads; ``'own'``: with the pooled vectors
            after the local heads.
        num_cells: n^2, the number of cells that enter the loss where the map has more; None for all. A square for
            ``'grid'``.
        selection: ``'grid'`` (regular, with a random phase) or ``'uniform'`` (without replacement). Positions are
            shared by the batch and by all processes, drawn once in a step for the student and once for the teacher; in
            evaluation mode both are the grid of phase 0.

    Raises:
        ValueError: An argument is unknown or out of range.
    """

    def __init__(
        self,
        projector: dict | None = None,
        predictor: dict | None = None,
        weight: float = 0.3,
        combination: str = 'convex',
        directions: str = 'both',
        space: str = 'global',
        num_cells: int | None = 49,
        selection: str = 'grid',
    ) -> None:
        super().__init__()
        self.projector = None if projector is None else MODELS.build(projector)
        self.predictor = None if predictor is None else MODELS.build(predictor)
        self.make_targets: nn.Module = nn.Identity()
        """Turns outputs of the local projector into targets; algorithms assign a copy of their head's."""
        self.weight = weight
        self.combination = combination
        self.directions = directions
        self.space = space
        self.num_cells = num_cells
        self.selection = selection
        self.random = SharedRandom()
        self._check_arguments()
        if directions == 'global_to_local' and space == 'global':
            # DistributedDataParallel refuses parameters without a gradient.
            self.requires_grad_(False)

    def _check_arguments(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f'{name} must be one of {", ".join(choices)}, got {getattr(self, name)!r}')
        if self.weight <= 0 or (self.combination == 'convex' and self.weight > 1):
            raise ValueError(f'weight must be in (0, 1], or positive if additive, got {self.weight}')
        if self.projector is None and (self.predictor is not None or self.space == 'own'):
            raise ValueError("a shared head (projector=None) has no predictor of its own and no space='own'")
        if self.num_cells is not None and self.num_cells < 1:
            raise ValueError(f'num_cells must be at least 1, got {self.num_cells}')
        if self.num_cells and self.selection == 'grid' and round(self.num_cells**0.5) ** 2 != self.num_cells:
            raise ValueError(f'a grid needs a square num_cells, got {self.num_cells}')

    @property
    def target_projector(self) -> nn.Module | None:
        """Module that the teacher has to follow: the local projector, if targets pass through it."""
        return self.projector if self.space == 'own' or self.directions != 'local_to_global' else None

    def loss(self, pair_loss: Callable[[Tensor, Tensor], Tensor], student: Branch, teacher: Branch) -> Tensor:
        """Average the base's loss over directions and ordered pairs of two views, without :attr:`weight`."""
        student_cells, teacher_cells = self._select(student.maps), self._select(teacher.maps)
        vector_targets, cell_targets = self._targets(teacher, teacher_cells)
        losses = []
        if self.directions != 'global_to_local':
            losses.append(mean_over_pairs(pair_loss, student.project(student_cells), vector_targets))
        if self.directions != 'local_to_global':
            vectors = student.outputs if self.space == 'global' else student.project(student.vectors)
            losses.append(mean_over_pairs(pair_loss, vectors, cell_targets))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _targets(self, teacher: Branch, cells: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Targets for cells, (B, d), and for vectors, (B, n, d), of each view, from one call of ``make_targets``."""
        sources: list[Sequence[Tensor]] = (
            [[vector[:, None] for vector in teacher.vectors]] if self.space == 'own' else []
        )
        if self.directions != 'local_to_global':
            sources.append(cells)
        if not sources:
            return teacher.outputs, []
        projections = [torch.stack(list(teacher.project(rows))) for rows in sources]
        joined = projections[0] if len(projections) == 1 else torch.cat(projections, dim=2)
        targets = self.make_targets(joined).split([part.shape[2] for part in projections], dim=2)
        vectors = targets[0].squeeze(2).unbind() if self.space == 'own' else teacher.outputs
        return vectors, targets[-1].unbind()

    def combine(self, global_loss: Tensor, local_loss: Tensor) -> dict[str, Tensor]:
        """Weight the base's loss and the result of :meth:`loss`, which has the base's loss weight already."""
        base_weight = 1 - self.weight if self.combination == 'convex' else 1.0
        return dict(loss_global=base_weight * global_loss, loss_local=self.weight * local_loss)

    def _select(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Select the cells that enter the loss, (B, n, C) per view."""
        cells = [view.flatten(2).transpose(1, 2) for view in maps]
        height, width = maps[0].shape[-2:]
        if self.num_cells is None or height * width <= self.num_cells:
            return cells
        generator = self.random.next_generator() if self.training else None
        positions = _SELECTIONS[self.selection]((height, width), self.num_cells, generator, maps[0].device)
        return [view[:, positions] for view in cells]
