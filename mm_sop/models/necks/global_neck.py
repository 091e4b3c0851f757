"""Global representation of any backbone."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor

from mm_sop.models.utils.tokens import split_features


@MODELS.register_module()
class GlobalNeck(BaseModule):
    """Passes [CLS], the pooled map or the backbone's own vector on to a classifier's head."""

    def forward(self, features: Tensor | Sequence[Tensor]) -> tuple[Tensor]:
        """Choose the vectors.

        Args:
            features: What a backbone gives: vectors (B, D), or as for :func:`split_features`.

        Returns:
            Vectors, (B, D).
        """
        if isinstance(features, Tensor) and features.ndim == 2:
            return (features,)
        return (split_features(features)[0],)
