import numpy as np
import pytest

from mm_sop.report.predictions import overlay_labels, segmentation_row

CLASSES, PALETTE = ('sky', 'sea'), [[0, 0, 0], [250, 100, 0]]


def test_overlay_mixes_colors_pixel_by_pixel():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    labels = rng.choice([0, 1, 255], (4, 5)).astype(np.uint8)
    mixed = overlay_labels(image, labels, PALETTE, opacity=0.25)
    for row in range(4):
        for column in range(5):
            color = image[row, column].astype(float)
            if labels[row, column] < 2:
                color = 0.75 * color + 0.25 * np.array(PALETTE[labels[row, column]])
            assert mixed[row, column] == pytest.approx(color, abs=0.5)


def test_a_row_names_classes_and_accuracy():
    truth = np.array([[1, 1, 0, 255]])
    tiles = segmentation_row(np.zeros((1, 4, 3), np.uint8), truth, np.array([[1, 0, 0, 0]]), CLASSES, PALETTE)
    assert [tile.caption for tile in tiles] == ['image', 'sea, sky', 'prediction, 67 % right']
    assert tiles[2].image[0, 0].tolist() == [150, 60, 0]


def test_an_image_without_labels_has_no_accuracy():
    truth = np.full((1, 2), 255)
    tiles = segmentation_row(np.zeros((1, 2, 3), np.uint8), truth, np.zeros((1, 2), int), CLASSES, PALETTE)
    assert [tile.caption for tile in tiles] == ['image', '', 'prediction, no labels']
