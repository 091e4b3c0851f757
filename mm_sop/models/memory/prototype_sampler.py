"""Self-organizing prototypes, drawn in every step."""

from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor

from mm_sop.functional import sample_anchors, sample_weighted, select_supports
from mm_sop.models.utils.shared_random import SharedRandom


class Prototypes(NamedTuple):
    """Constant members of M prototypes in each of T tasks: supports by descending cosine, then the anchor.

    Attributes:
        members: Unit rows, (T, M, k + 1, d).
        weights: Votes of the members, (T, M, k + 1), in [0, 1].
    """

    members: Tensor
    weights: Tensor

    @property
    def support_weights(self) -> Tensor:
        """Cosines of supports to their anchors, clamped to [0, 1], (T, M, k)."""
        return self.weights[..., :-1]


@MODELS.register_module()
class PrototypeSampler(BaseModule):
    """Draws self-organizing prototypes from a memory bank (SOP, section 3).

    In every call and for every task, anchors are drawn uniformly from the bank and joined by their nearest rows. All
    processes draw the same anchors.

    Args:
        bank: Config of the :class:`SupportEmbeddingBank`.
        num_anchors: Anchors drawn for a task, the paper's K.
        num_supports: Number k of support embeddings of an anchor, besides itself.
        num_tasks: Number T of independent tasks of a step.
        anchor_weight: Weight of the anchor in its own prototype, one minus the label smoothing.
        anchor_selection: Which of the drawn anchors become prototypes. ``'all'``; ``'uniform'``, a random half, to
            which the released "low energy" selection amounts; ``'low_energy'``, the half drawn in proportion to
            ``1 / cv`` of the supports' cosines, cv their bias-corrected coefficient of variation, the apparent
            intention of that selection. Dropped anchors do not become supports either.
        fix_anchors_after: Number of steps after which the anchors are frozen as vectors, to reproduce the collapse that
            the paper reports for fixed anchors (Table C.7). None, as in the method, never freezes them.
    """

    def __init__(
        self,
        bank: dict,
        num_anchors: int = 64,
        num_supports: int = 8,
        num_tasks: int = 4,
        anchor_weight: float = 0.9,
        anchor_selection: str = 'uniform',
        fix_anchors_after: int | None = None,
    ) -> None:
        super().__init__()
        self.bank = MODELS.build(bank)
        self.random = SharedRandom()
        self.num_anchors = num_anchors
        self.num_supports = num_supports
        self.num_tasks = num_tasks
        self.anchor_weight = anchor_weight
        self.anchor_selection = anchor_selection
        self.fix_anchors_after = fix_anchors_after
        self._check_arguments()
        if fix_anchors_after is not None:
            width = self.bank.embeddings.shape[1]
            self.register_buffer('fixed_anchors', torch.zeros(num_tasks, num_anchors, width))

    @property
    def num_prototypes(self) -> int:
        """Prototypes M of a task after the selection."""
        return self.num_anchors if self.anchor_selection == 'all' else self.num_anchors // 2

    @torch.no_grad()
    def forward(self) -> Prototypes:
        """Draw the prototypes of a step."""
        generator = self.random.next_generator()
        bank, anchors, excluded = self._draw_anchors(generator)
        if self.anchor_selection == 'uniform':
            # Anchors come in random order: the first half is a uniform half.
            anchors = anchors[:, : self.num_prototypes]
        rows, weights = select_supports(bank, anchors, self.num_supports, self.anchor_weight, excluded)
        if self.anchor_selection == 'low_energy':
            cosines = weights[..., :-1]
            correction = 1 + 1 / (4 * self.num_supports)
            variation = correction * cosines.std(-1) / cosines.mean(-1).clamp_min(1e-8)
            chances = 1 / variation.clamp_min(1e-8)
            kept = sample_weighted(chances, self.num_prototypes, generator).unsqueeze(-1)
            rows, weights = rows.take_along_dim(kept, dim=1), weights.take_along_dim(kept, dim=1)
        return Prototypes(bank[rows], weights)

    def _draw_anchors(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Rows to choose from, (N, d), anchors, (T, M), and rows that cannot be supports, (T, M')."""
        bank = self.bank.embeddings
        anchors = sample_anchors(len(bank), self.num_anchors, self.num_tasks, generator, bank.device)
        if self.fix_anchors_after is None or self.random.draws_so_far <= self.fix_anchors_after:
            return bank, anchors, anchors
        if self.random.draws_so_far == self.fix_anchors_after + 1:
            self.fixed_anchors.copy_(bank[anchors])
        # Frozen vectors are appended to the rows of the bank, where the queue cannot overwrite them.
        fixed = torch.arange(self.fixed_anchors[..., 0].numel(), device=bank.device) + len(bank)
        bank = torch.cat([bank, self.fixed_anchors.flatten(0, 1)])
        return bank, fixed.view(self.num_tasks, -1), fixed.expand(self.num_tasks, -1)

    def _check_arguments(self) -> None:
        if self.num_tasks < 1 or self.num_supports < 0 or not 0 <= self.anchor_weight <= 1:
            raise ValueError(
                f'num_tasks={self.num_tasks}, num_supports={self.num_supports}, anchor_weight={self.anchor_weight}: '
                'expected at least one task, no negative number of supports, and a weight in [0, 1]'
            )
        if self.anchor_selection not in ('all', 'uniform', 'low_energy'):
            raise ValueError(
                f"anchor_selection must be 'all', 'uniform' or 'low_energy', got {self.anchor_selection!r}"
            )
        if self.anchor_selection != 'all' and self.num_anchors % 2:
            raise ValueError(
                f'anchor_selection={self.anchor_selection!r} keeps half of the anchors, but num_anchors is '
                f"{self.num_anchors}: choose an even number or anchor_selection='all'"
            )
        if self.num_prototypes < 2:
            raise ValueError(
                f'{self.num_prototypes} prototypes are left of {self.num_anchors} anchors: at least 2 needed'
            )
        if self.anchor_selection == 'low_energy' and self.num_supports < 2:
            raise ValueError("anchor_selection='low_energy' needs at least 2 supports for a coefficient of variation")
        if self.num_anchors + self.num_supports > len(self.bank):
            raise ValueError(
                f'{self.num_anchors} anchors and {self.num_supports} supports do not fit into a bank of '
                f'{len(self.bank)} rows: enlarge the bank, or lower num_anchors or num_supports'
            )
        if self.fix_anchors_after is not None and self.fix_anchors_after < 0:
            raise ValueError(f'fix_anchors_after must not be negative, got {self.fix_anchors_after}')
