"""What heads that compare a student's predictions with a teacher's targets have in common."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn


class SiameseHead(BaseModule):
    """Predictor, rule for targets, and a loss between two views.

    A subclass gives :meth:`pair_loss`; :attr:`make_targets` turns the teacher's outputs into targets. Whatever is
    compared may be one vector per image, (B, d), or have n cells per image on one of the two sides, (B, n, d): that is
    all that :class:`LocalGlobalHead` needs.

    Args:
        predictor: Config of a neck of MMPretrain that maps the student's projections to predictions; None for none.
        loss_weight: Weight of the mean over all ordered pairs of views.
    """

    def __init__(self, predictor: dict | None = None, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.predictor = None if predictor is None else MODELS.build(predictor)
        self.loss_weight = loss_weight
        self.make_targets = nn.Identity()

    def predict(self, projections: Tensor) -> Tensor:
        """Predictions of the student, (m, d) -> (m, d)."""
        return projections if self.predictor is None else self.predictor((projections,))[0]

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
        """Compare every prediction with the targets of all other views.

        Args:
            predictions: Of V views, those with targets first, (B, d) each.
            targets: Of the first views, (B, d) each.

        Returns:
            Scalar.
        """
        return self.loss_weight * mean_over_pairs(self.pair_loss, predictions, targets)


def mean_over_pairs(pair_loss, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Mean of a loss over all ordered pairs of different views.

    Args:
        pair_loss: Maps predictions and targets to a scalar.
        predictions: Of V views, those with targets first.
        targets: Of the first views.

    Returns:
        Scalar.
    """
    losses = [
        pair_loss(prediction, target)
        for view, prediction in enumerate(predictions)
        for other, target in enumerate(targets)
        if view != other
    ]
    return torch.stack(losses).sum() / len(losses)
