"""Head of MoCo v3."""

import torch
from mmengine.dist import get_dist_info
from mmpretrain.registry import MODELS
from torch import Tensor

from mm_sop.functional import info_nce_loss
from mm_sop.models.heads.siamese_head import SiameseHead
from mm_sop.utils.distributed import gather_in_sample_order


@MODELS.register_module()
class InfoNCEHead(SiameseHead):
    """InfoNCE loss of predictions against the keys of the global batch (MoCo v3).

    The positive key is the other view of the same image; the keys of all other images are negatives.

    Args:
        temperature: Divides the cosines.
        loss_weight: Weight of the mean over the ordered pairs of views. Defaults to ``4 temperature``, which is the
            published ``2 temperature`` for each of the two directions.
        cells_per_chunk: Cells whose logits, (cells, B, global B), exist at once; with more cells, logits are computed
            in chunks, and again in the backward pass.
    """

    def __init__(
        self,
        predictor: dict | None,
        temperature: float = 1.0,
        loss_weight: float | None = None,
        cells_per_chunk: int = 8,
    ) -> None:
        super().__init__(predictor, 4 * temperature if loss_weight is None else loss_weight)
        if temperature <= 0 or cells_per_chunk < 1:
            raise ValueError(
                f'expected temperature > 0 and cells_per_chunk >= 1, got {temperature} and {cells_per_chunk}'
            )
        self.temperature = temperature
        self.cells_per_chunk = cells_per_chunk

    def pair_loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Compute the cross-entropy of identifying the positive key, see :meth:`SiameseHead.pair_loss`."""
        rank, world_size = get_dist_info()
        keys = gather_in_sample_order(targets)
        # Row of the positive key of each prediction, in the order of the global batch.
        positives = rank + world_size * torch.arange(len(predictions), device=predictions.device)
        return info_nce_loss(predictions, keys, positives, self.temperature, self.cells_per_chunk)
