"""Global representation of any backbone."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor

from mm_sop.models.utils.tokens import split_features


@MODELS.register_module()
class GlobalNeck(BaseModule):
    """Selects [CLS], the pooled map or the backbone's own vector for a classification head."""

    def forward(self, features: Tensor | Sequence[Tensor]) -> tuple[Tensor]:
        """Select the global vectors, (B, D), of features that are vectors already, or as for :func:`split_features`."""
        if isinstance(features, Tensor) and features.ndim == 2:
            return (features,)
        return (split_features(features)[0],)
