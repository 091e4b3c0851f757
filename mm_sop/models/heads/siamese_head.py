"""Base of heads that compare a student's predictions with a teacher's targets."""

from collections.abc import Callable, Sequence

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn


class SiameseHead(BaseModule):
    """Predictor, targets, and a loss between two views.

    Subclasses implement :meth:`pair_loss`; :attr:`make_targets` turns the teacher's outputs into targets. Both sides
    have one vector per image, (B, d), or one of them has n cells per image, (B, n, d): that is all that
    :class:`LocalGlobalHead` needs.

    Args:
        predictor: Config of a neck of MMPretrain that maps the student's projections to predictions; None for none.
        loss_weight: Weight of the mean over all ordered pairs of views.
    """

    def __init__(self, predictor: dict | None = None, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.predictor = None if predictor is None else MODELS.build(predictor)
        self.loss_weight = loss_weight
        self.make_targets: nn.Module = nn.Identity()

    def pair_loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Compare predictions of one view with targets of another view of the same images.

        Args:
            predictions: (B, d), or (B, n, d) for n cells per image.
            targets: (B, d), or (B, n, d) for n cells per image if the predictions have none.

        Returns:
            Scalar, the mean over images and cells.
        """
        raise NotImplementedError

    def loss(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Compare the predictions of V views, (B, d) each, with the targets of the first views, (B, d) each."""
        return self.loss_weight * mean_over_pairs(self.pair_loss, predictions, targets)


def mean_over_pairs(
    pair_loss: Callable[[Tensor, Tensor], Tensor], predictions: Sequence[Tensor], targets: Sequence[Tensor]
) -> Tensor:
    """Average a loss over all ordered pairs of different views, of which the first have targets."""
    losses = [
        pair_loss(prediction, target)
        for view, prediction in enumerate(predictions)
        for other, target in enumerate(targets)
        if view != other
    ]
    return torch.stack(losses).sum() / len(losses)
