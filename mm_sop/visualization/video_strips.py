"""Frames of videos with the masks that were predicted for them."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from mm_sop.datasets.davis import VideoSequence, read_mask
from mm_sop.datasets.transforms.loading import read_image
from mm_sop.functional.segmentation import mask_contour
from mm_sop.visualization.montage import Tile, montage, to_png
from mm_sop.visualization.page import Photo

# Seldom colours of photos.
_COLORS = np.array([(255, 0, 170), (255, 230, 0), (0, 240, 255), (140, 0, 255), (120, 255, 0)])
_OPACITY = 0.6


def video_strips(
    name: str, rows: Sequence[tuple[VideoSequence, Sequence[Path], np.ndarray]], num_frames: int = 5, side: int = 256
) -> Photo:
    """Draw a row of frames for every sequence, the first with the given mask.

    Args:
        name: Name of the file.
        rows: Sequence, predicted masks of all frames, and J&F of all but the first and the last one, for each row.
        num_frames: Frames shown beside the first, evenly spaced.
        side: Longer side of a frame, twice as large as it is shown.
    """
    tiles = []
    for sequence, predicted, scores in rows:
        shown = np.linspace(1, len(scores), num_frames).round().astype(int).tolist()
        given = Tile(_paint(sequence, 0, read_mask(sequence.masks[0])), sequence.name)
        found = [
            Tile(_paint(sequence, frame, read_mask(predicted[frame])), f'{frame}: {100 * scores[frame - 1]:.0f}')
            for frame in shown
        ]
        tiles.append([given, *found])
    text = (
        'Sequences from the best to the worst followed: the given mask, then predicted masks with the number of the '
        'frame and its J&F in per cent; white lines are the true contours.'
    )
    return Photo(name, to_png(montage(tiles, side)), text)


def _paint(sequence: VideoSequence, frame: int, mask: np.ndarray) -> np.ndarray:
    """The frame, (H, W, 3), under the colours of a mask, with the contours of the true objects."""
    picture = cv2.cvtColor(read_image(sequence.frames[frame]), cv2.COLOR_BGR2RGB)
    for number in np.unique(mask[mask > 0]):
        color = _COLORS[(number - 1) % len(_COLORS)]
        picture[mask == number] = (1 - _OPACITY) * picture[mask == number] + _OPACITY * color
    truth = read_mask(sequence.masks[frame])
    for number in np.unique(truth):
        picture[mask_contour(torch.from_numpy(truth == number)).numpy()] = 255
    return picture
