"""Sequences of DAVIS 2017."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from mm_sop.utils.files import open_regular

VOID = 255


@dataclass(frozen=True)
class VideoSequence:
    """Frames of a video in temporal order, and their masks, one per frame."""

    name: str
    frames: Sequence[Path]
    masks: Sequence[Path]


def read_davis(folder: str | Path, split: str = 'val') -> list[VideoSequence]:
    """List the sequences that ``ImageSets/2017/<split>.txt`` names, with the resolution of 480 lines.

    Args:
        folder: Folder with ``JPEGImages/480p/<sequence>/``, ``Annotations/480p/<sequence>/`` and ``ImageSets/``.
        split: Name of the text file.

    Raises:
        FileNotFoundError: The text file or frames are missing.
        ValueError: The text file is empty, or frames and masks of a sequence do not match.
    """
    folder = Path(folder)
    file = folder / f'ImageSets/2017/{split}.txt'
    if not file.is_file():
        raise FileNotFoundError(f'{file} does not exist: expected the names of the sequences, one per line')
    sequences = []
    for name in file.read_text().split():
        frames = sorted((folder / 'JPEGImages/480p' / name).glob('*.jpg'))
        masks = sorted((folder / 'Annotations/480p' / name).glob('*.png'))
        if not frames:
            raise FileNotFoundError(f'{folder}/JPEGImages/480p/{name} has no *.jpg')
        if [frame.stem for frame in frames] != [mask.stem for mask in masks] or len(frames) < 3:
            raise ValueError(
                f'sequence {name}: {len(frames)} frames and {len(masks)} masks in {folder}; expected a mask of the '
                'same name for every frame, and three frames at least, because the first and the last are not scored'
            )
        sequences.append(VideoSequence(name, frames, masks))
    if not sequences:
        raise ValueError(f'{file} names no sequences')
    return sequences


def read_mask(path: Path) -> np.ndarray:
    """Read the object of every pixel: 0 for the background, 255 for void, uint8, (H, W).

    Raises:
        ValueError: The image has neither a palette nor gray levels.
    """
    with open_regular(path) as file:
        mask = np.asarray(Image.open(file))
    if mask.ndim != 2:
        raise ValueError(f'{path} has colors: expected a palette image whose indices are the objects')
    return mask.astype(np.uint8)


def encode_mask(mask: np.ndarray) -> bytes:
    """Encode a mask, uint8, (H, W), as a PNG with the palette of DAVIS and Pascal VOC."""
    # Three bits of a number at a time go to R, G and B, the highest bits of the colors first.
    numbers = np.arange(256)[:, None]
    colors = sum((numbers >> (3 * bit + np.arange(3)) & 1) << (7 - bit) for bit in range(8))
    image = Image.fromarray(mask)
    image.putpalette(np.uint8(colors).tobytes())
    buffer = BytesIO()
    image.save(buffer, format='PNG')
    return buffer.getvalue()
