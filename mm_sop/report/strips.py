"""Galleries of search results and of segmented videos."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from mm_sop.datasets.image_files import ImageFiles
from mm_sop.datasets.labeled.davis import read_mask
from mm_sop.datasets.transforms.loading import read_image
from mm_sop.functional.segmentation import mask_contour
from mm_sop.report.montage import RIGHT, WRONG, Tile, montage, to_image, to_png
from mm_sop.report.page import Photo

# Images are shown as stored in the files, not as preprocessed for the network.
_PIPELINE = (dict(type='LoadImage'), dict(type='FitWithin', max_side=512), dict(type='PackInputs'))
# Colors that are rare in photos.
_COLORS = np.array([(255, 0, 170), (255, 230, 0), (0, 240, 255), (140, 0, 255), (120, 255, 0)])
_OPACITY = 0.6


def retrieval_strips(name: str, strips: Sequence[Mapping], text: str) -> Photo:
    """Draw queries with the images that were found; right ones have a green frame, wrong ones an orange one.

    See :func:`mm_sop.evaluation.retrieval.rankings.make_strip` for the ``strips``.
    """
    rows = []
    for strip in strips:
        tiles = [Tile(_load(strip['query'], strip['box']), strip['caption'])]
        for path, similarity, is_right in strip['found']:
            tiles.append(Tile(_load(path), f'{similarity:.2f}', RIGHT if is_right else WRONG))
        rows.append(tiles)
    return Photo(name, to_png(montage(rows)), f'{text}. Green frames are right, orange ones wrong.')


def _load(path: str, box: Sequence[float] | None = None) -> np.ndarray:
    images = ImageFiles([path], _PIPELINE, None if box is None else [box])
    return to_image(images[0]['inputs'], is_bgr=True)


def video_strips(name: str, sequences: Sequence[Mapping], num_frames: int = 5, side: int = 256) -> Photo:
    """Draw a row of frames for every sequence: the first one with the given mask, then ``num_frames``, evenly spaced.

    Args:
        name: Name of the file.
        sequences: ``name``, files of the ``frames``, true ``masks`` and ``predicted`` masks, and ``scores``, J&F of all
            frames but the first and the last.
        num_frames: Frames shown beside the first.
        side: Longer side of a frame in the file, which is twice the displayed one.
    """
    rows = []
    for sequence in sequences:
        frames, masks, scores = sequence['frames'], sequence['masks'], sequence['scores']
        tiles = [Tile(_paint(frames[0], masks[0], masks[0]), sequence['name'])]
        for frame in np.linspace(1, len(scores), num_frames).round().astype(int).tolist():
            painted = _paint(frames[frame], sequence['predicted'][frame], masks[frame])
            tiles.append(Tile(painted, f'{frame}: {100 * scores[frame - 1]:.0f}'))
        rows.append(tiles)
    text = (
        'Sequences from the best to the worst followed: the given mask, then predicted masks with the number of the '
        'frame and its J&F in percent; white lines are the true contours.'
    )
    return Photo(name, to_png(montage(rows, side)), text)


def _paint(frame: str | Path, mask: str | Path, truth: str | Path) -> np.ndarray:
    """The frame, (H, W, 3), under the colors of a mask, with the contours of the true objects."""
    image = cv2.cvtColor(read_image(frame), cv2.COLOR_BGR2RGB)
    shown, true_mask = read_mask(Path(mask)), read_mask(Path(truth))
    for number in np.unique(shown[shown > 0]):
        color = _COLORS[(number - 1) % len(_COLORS)]
        image[shown == number] = (1 - _OPACITY) * image[shown == number] + _OPACITY * color
    for number in np.unique(true_mask):
        image[mask_contour(torch.from_numpy(true_mask == number)).numpy()] = 255
    return image
