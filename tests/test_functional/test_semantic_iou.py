import math

import pytest
import torch

from mm_sop.functional import class_areas, segmentation_scores


def loop_scores(predictions, targets, num_classes):
    """Counts pixel by pixel."""
    right, predicted, true = ([0] * num_classes for _ in range(3))
    for prediction, target in zip(predictions, targets, strict=True):
        for guess, label in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
            if label == 255:
                continue
            predicted[guess] += 1
            true[label] += 1
            right[label] += guess == label
    unions = [predicted[label] + true[label] - right[label] for label in range(num_classes)]
    iou = [right[label] / unions[label] if unions[label] else math.nan for label in range(num_classes)]
    accuracy = [right[label] / true[label] if true[label] else math.nan for label in range(num_classes)]
    return iou, accuracy, sum(right) / sum(true)


@pytest.mark.parametrize('seed', range(5))
def test_scores_equal_a_loop_over_pixels(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(5, 7), (3, 4), (6, 6)]
    # Class 4 is predicted but never true, class 5 neither.
    targets = [torch.randint(0, 4, size, generator=generator, dtype=torch.uint8) for size in sizes]
    predictions = [torch.randint(0, 5, size, generator=generator) for size in sizes]
    for target in targets:
        target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    areas = sum(class_areas(*pair, num_classes=6) for pair in zip(predictions, targets, strict=True))
    iou, accuracy, pixel_accuracy = loop_scores(predictions, targets, 6)
    scores = segmentation_scores(areas)
    assert scores['iou'].tolist() == pytest.approx(iou, nan_ok=True)
    assert scores['accuracy'].tolist() == pytest.approx(accuracy, nan_ok=True)
    assert scores['pixel_accuracy'].item() == pytest.approx(pixel_accuracy)
    assert scores['iou'][4] == 0 and scores['iou'][5].isnan()


def test_areas_stay_exact_beyond_single_precision():
    areas = torch.full((3, 2), 2**24 + 1)
    assert segmentation_scores(areas + torch.tensor([[0], [1], [0]]))['iou'][0].item() == (2**24 + 1) / (2**24 + 2)


def test_what_does_not_fit_is_refused():
    labels = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match='differ in shape'):
        class_areas(labels, labels[:1], 2)
    with pytest.raises(ValueError, match='class 5 is beyond the 2 classes'):
        class_areas(labels, labels + 5, 2)
    with pytest.raises(ValueError, match='class 3 is beyond'):
        class_areas(labels + 3, labels, 2)
