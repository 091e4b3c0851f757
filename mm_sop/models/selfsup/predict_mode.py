"""MMEngine's validation and test loops for self-supervised models."""

import inspect
from collections.abc import Sequence
from functools import wraps

from mmpretrain.models import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import Tensor

from mm_sop.models.utils.tokens import split_features


def add_predict_mode() -> None:
    """Teach all of MMPretrain's self-supervised models the mode ``'predict'``, which the loops ask for.

    MMPretrain's base class refuses it. The prediction for a picture is its global representation, the field
    ``feature`` of the data sample; for models with a teacher it is the teacher's.
    """
    forward = BaseSelfSupervisor.forward

    @wraps(forward)
    def forward_or_predict(self, inputs, data_samples=None, mode: str = 'tensor'):
        if mode == 'predict':
            return predict_features(self, inputs, data_samples)
        return forward(self, inputs, data_samples, mode)

    BaseSelfSupervisor.forward = forward_or_predict


def predict_features(
    model: BaseSelfSupervisor, images: Tensor, data_samples: Sequence[DataSample] | None = None
) -> list[DataSample]:
    """Describe every picture by its global representation.

    Args:
        model: The model.
        images: Normalised images, (B, C, H, W).
        data_samples: One for each image; None for new ones.

    Returns:
        The data samples with ``feature``, (D,), fp32.
    """
    samples = [DataSample() for _ in images] if data_samples is None else data_samples
    for sample, feature in zip(samples, _global_features(model, images).float(), strict=True):
        sample.set_data(dict(feature=feature))
    return list(samples)


def _global_features(model: BaseSelfSupervisor, images: Tensor) -> Tensor:
    features = model.extract_feat(images)
    # Models with a teacher say themselves what is global.
    return features[0] if 'network' in inspect.signature(model.extract_feat).parameters else split_features(features)[0]
