"""Areas of classes in label maps, and segmentation scores from these areas."""

import torch
from torch import Tensor


def class_areas(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count the pixels of every class.

    Areas of several images may be added: the scores of a dataset follow from the sums.

    Args:
        prediction: Predicted classes, integer, of any shape.
        target: True classes of the same shape, in [0, C) or ``ignore_index``.
        num_classes: C.
        ignore_index: Label of pixels that do not count.

    Returns:
        Correct, predicted and true pixels of each class, int64, (3, C).

    Raises:
        ValueError: If the shapes differ or a value is not a class.
    """
    if prediction.shape != target.shape:
        raise ValueError(f'prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape')
    counts = target != ignore_index
    prediction, target = prediction[counts].long(), target[counts].long()
    groups = (target[prediction == target], prediction, target)
    areas = [torch.bincount(group, minlength=num_classes) for group in groups]
    if any(len(area) > num_classes for area in areas):
        highest = max(int(prediction.max()), int(target.max()))
        raise ValueError(f'class {highest} is beyond the {num_classes} classes 0 ... {num_classes - 1}')
    return torch.stack(areas)


def segmentation_scores(areas: Tensor) -> dict[str, Tensor]:
    """Compute intersection over union and accuracies from sums of :func:`class_areas`, (3, C).

    Returns:
        ``iou`` and ``accuracy`` (recall) of every class, (C,), NaN for classes that do not occur; and
        ``pixel_accuracy`` over all pixels. All fp64, in [0, 1].
    """
    correct, predicted, true = areas.double()
    return dict(
        iou=correct / (predicted + true - correct), accuracy=correct / true, pixel_accuracy=correct.sum() / true.sum()
    )
