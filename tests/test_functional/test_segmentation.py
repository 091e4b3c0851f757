import math

import numpy as np
import pytest
import torch
from skimage.morphology import dilation, disk

from mm_sop.functional.segmentation import contour_accuracy, dilate, mask_contour, region_similarity


def blobs(seed, shape=(37, 52)):
    """A few random ellipses that may touch the border."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for _ in range(3):
        (cy, cx), (ry, rx) = rng.uniform(0, shape), rng.uniform(3, 15, 2)
        mask |= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
    return torch.from_numpy(mask)


def loop_contour(mask):
    height, width = mask.shape
    contour = set()
    for y in range(height):
        for x in range(width):
            below, right = min(y + 1, height - 1), min(x + 1, width - 1)
            others = (mask[y, right], mask[below, x], mask[below, right])
            if any(bool(other) != bool(mask[y, x]) for other in others):
                contour.add((y, x))
    return contour


def loop_contour_accuracy(mask, truth, tolerance=0.008):
    radius = math.ceil(tolerance * math.hypot(*mask.shape))
    found, wanted = loop_contour(mask), loop_contour(truth)

    def fraction(points, others):
        near = [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in others) for y, x in points]
        return sum(near) / len(near) if near else 1.0

    precision, recall = fraction(found, wanted), fraction(wanted, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def square(top, left, side=20, size=100):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('tolerance', [0.008, 0.05])
def test_scores_equal_the_loops(seed, tolerance):
    mask, truth = blobs(seed), blobs(seed).roll((2, -1), (0, 1)) ^ (blobs(seed + 100) & blobs(seed + 200))
    inside = [(bool(a), bool(b)) for a, b in zip(mask.flatten(), truth.flatten(), strict=True)]
    expected = sum(a and b for a, b in inside) / sum(a or b for a, b in inside)
    assert float(region_similarity(mask, truth)) == pytest.approx(expected, abs=1e-12)
    expected = loop_contour_accuracy(mask, truth, tolerance)
    assert float(contour_accuracy(mask, truth, tolerance)) == pytest.approx(expected, abs=1e-12)


def test_known_overlaps():
    truth = square(40, 40)
    masks = torch.stack([truth, square(40, 50), square(0, 0), truth & False])
    assert region_similarity(masks, truth.expand_as(masks)).tolist() == [1, 200 / 600, 0, 0]
    empty = truth & False
    assert float(region_similarity(empty, empty)) == float(contour_accuracy(empty, empty)) == 1


def test_contours_match_within_the_tolerance():
    # The diagonal is 141 pixels, so contours up to 2 pixels apart match.
    truth = square(40, 40)
    scores = [float(contour_accuracy(square(40, 40 + shift), truth)) for shift in (0, 2, 3, 30)]
    assert scores[:2] == [1, 1] and 0.4 < scores[2] < 1 and scores[3] == 0
    assert float(contour_accuracy(truth & False, truth)) == 0


@pytest.mark.parametrize('radius', [0, 1, 4, 8])
def test_dilation_is_that_of_a_disk(radius):
    contour = mask_contour(blobs(7))
    assert np.array_equal(dilate(contour, radius).numpy(), dilation(contour.numpy(), disk(radius)))


def test_leading_dimensions_are_independent():
    masks, truths = (torch.stack([blobs(seed + start) for seed in range(4)]).unflatten(0, (2, 2)) for start in (0, 9))
    for score in (region_similarity, contour_accuracy):
        together = score(masks, truths)
        assert together.shape == (2, 2)
        assert together[1, 0] == score(masks[1, 0], truths[1, 0])


def test_masks_of_numpy_are_taken():
    mask, truth = blobs(0), blobs(1)
    for score in (region_similarity, contour_accuracy):
        assert score(mask.numpy(), truth.numpy()) == score(mask, truth)


def test_bad_masks_are_refused():
    with pytest.raises(ValueError, match=r'two masks .*\(100, 100\) and \(90, 90\)'):
        region_similarity(square(0, 0), square(0, 0, size=90))
    with pytest.raises(ValueError, match='must be bool, got torch.uint8'):
        contour_accuracy(square(0, 0).byte(), square(0, 0).byte())
