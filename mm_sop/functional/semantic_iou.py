"""Areas of classes in label maps, and the scores that follow from them."""

import torch
from torch import Tensor


def class_areas(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count the pixels of every class.

    Areas of several pictures may be added: the scores of a data set follow from its sums.

    Args:
        prediction: Predicted classes, integer, of any shape.
        target: True classes of the same shape, in [0, C) or ``ignore_index``.
        num_classes: Number C of classes.
        ignore_index: Value of true pixels that do not count.

    Returns:
        Pixels that are right, that are predicted and that are true, int64, (3, C).

    Raises:
        ValueError: If the shapes differ or a value is no class.
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
    """Intersection over union and accuracies.

    Args:
        areas: Sums of :func:`class_areas`, (3, C).

    Returns:
        ``iou`` and ``accuracy`` (recall) of every class, (C,), NaN for classes that do not occur; and
        ``pixel_accuracy`` over all pixels. All fp64, in [0, 1].
    """
    right, predicted, true = areas.double()
    return dict(iou=right / (predicted + true - right), accuracy=right / true, pixel_accuracy=right.sum() / true.sum())
