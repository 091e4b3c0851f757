"""Prediction mode of self-supervised models, for MMEngine's validation and test loops."""

from collections.abc import Sequence
from functools import wraps

from mmpretrain.models import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import Tensor

from mm_sop.models.selfsup.teacher_student import TeacherStudent
from mm_sop.models.utils.tokens import split_features


def add_predict_mode() -> None:
    """Add the mode ``'predict'``, which the loops need, to all self-supervised models of MMPretrain.

    MMPretrain's base class does not support it. The prediction for an image is its global representation, in the field
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
    """Write the global representation of every normalized image, (B, C, H, W), into its data sample or a new one.

    Returns:
        The data samples with ``feature``, (D,), fp32.
    """
    features = model.extract_feat(images)
    # Models with a teacher return global and local representations.
    vectors = features[0] if isinstance(model, TeacherStudent) else split_features(features)[0]
    samples = [DataSample() for _ in images] if data_samples is None else list(data_samples)
    for sample, feature in zip(samples, vectors.float(), strict=True):
        sample.set_data(dict(feature=feature))
    return samples
