"""Head of BYOL."""

from mmpretrain.registry import MODELS
from torch import Tensor

from mm_sop.functional import local_global_similarity
from mm_sop.models.heads.siamese_head import SiameseHead


@MODELS.register_module()
class BYOLHead(SiameseHead):
    """Negative cosine between predictions and targets (BYOL, equation 2).

    Args:
        loss_weight: Weight of the mean over the ordered pairs of views. The default of 4 is the usual
            ``2 [D(x -> x') + D(x' -> x)]``, that is ``2 - 2 cos`` without its constant in both directions.
    """

    def __init__(self, predictor: dict | None, loss_weight: float = 4.0) -> None:
        super().__init__(predictor, loss_weight)

    def pair_loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Compute the negative mean cosine, in [-1, 1], see :meth:`SiameseHead.pair_loss`."""
        targets = targets.detach()
        if targets.ndim == 3:
            return -local_global_similarity(targets, predictions).mean()
        predictions = predictions[:, None] if predictions.ndim == 2 else predictions
        return -local_global_similarity(predictions, targets).mean()
