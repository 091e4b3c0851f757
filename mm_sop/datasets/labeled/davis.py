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
    """Frames of a video and their masks.

    Attributes:
        name: Name of the sequence.
        frames: Files of the frames, in temporal order.
        masks: Files of the masks, one per frame.
    """

    name: str
    frames: Sequence[Path]
    masks: Sequence[Path]


def read_davis(folder: str | Path, split: str = 'val', resolution: str = '480p') -> list[VideoSequence]:
    """List the sequences of a split.

    Args:
        folder: Folder with ``JPEGImages/<resolution>/<sequence>/``, ``Annotations/<resolution>/<sequence>/`` and
            ``ImageSets/2017/<split>.txt``.
        split: Name of the text file with the names of the sequences.
        resolution: Name of the folders.

    Raises:
        FileNotFoundError: The text file or frames are missing.
        ValueError: The text file is empty, or frames and masks of a sequence do not match.
    """
    folder = Path(folder)
    file = folder / f'ImageSets/2017/{split}.txt'
    if not file.is_file():
        raise FileNotFoundError(f'{file} does not exist: expected the names of the sequences, one per line')
    names = file.read_text().split()
    if not names:
        raise ValueError(f'{file} names no sequences')
    return [_read_sequence(folder, resolution, name) for name in names]


def _read_sequence(folder: Path, resolution: str, name: str) -> VideoSequence:
    frames, masks = (
        sorted((folder / kind / resolution / name).glob(f'*{extension}'))
        for kind, extension in (('JPEGImages', '.jpg'), ('Annotations', '.png'))
    )
    if not frames:
        raise FileNotFoundError(f'{folder}/JPEGImages/{resolution}/{name} has no *.jpg')
    if [frame.stem for frame in frames] != [mask.stem for mask in masks] or len(frames) < 3:
        raise ValueError(
            f'sequence {name}: {len(frames)} frames and {len(masks)} masks in {folder}; expected a mask of the same '
            'name for every frame, and three frames at least, because the first and the last are not scored'
        )
    return VideoSequence(name, frames, masks)


def read_mask(path: Path) -> np.ndarray:
    """Read the object of every pixel: 0 for the background, 255 for void, uint8, (H, W).

    Args:
        path: Palette or gray image.

    Raises:
        ValueError: It is a color image.
    """
    with open_regular(path) as file:
        mask = np.asarray(Image.open(file))
    if mask.ndim != 2:
        raise ValueError(f'{path} has colors: expected a palette image whose indices are the objects')
    return mask.astype(np.uint8)


def encode_mask(mask: np.ndarray) -> bytes:
    """Encode a mask, uint8, (H, W), as a PNG with the palette of DAVIS and Pascal VOC."""
    # Three bits of a number at a time go to R, G and B, the highest bits of the colors first.
    numbers = np.arange(256)
    colors = np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (numbers >> (3 * bit + channel) & 1) << (7 - bit)
    image = Image.fromarray(mask)
    image.putpalette(colors.astype(np.uint8).tobytes())
    buffer = BytesIO()
    image.save(buffer, format='PNG')
    return buffer.getvalue()
