"""Guarded decoding, and the measures by which source pictures are chosen: photo-likeness and near-duplicates."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mm_sop.datasets.files import open_regular

MAX_SOURCE_SIDE = 12_000
SIGNATURE_SIDE = 24


class UnusableImageError(ValueError):
    """A source picture that cannot be decoded or is too large."""


def read_image(path: str | Path, mode: str, max_side: int) -> Image.Image:
    """Decode a picture of any common kind at a limited size.

    JPEG files are decoded at a reduced scale where that is possible. Palettes, CMYK, alpha, 16-bit grey and EXIF
    orientation are handled.

    Args:
        path (str | Path): The picture file.
        mode (str): ``'RGB'`` or ``'RGBA'``.
        max_side (int): The longer side of the result in pixels; smaller pictures are not enlarged.

    Returns:
        Image.Image: The picture in ``mode``.

    Raises:
        UnusableImageError: If the file is no picture, is truncated, or has a side above 12,000 pixels.
    """
    try:
        with open_regular(path) as file, Image.open(file) as image:
            if max(image.size) > MAX_SOURCE_SIDE:
                raise UnusableImageError(
                    f'{path}: {image.width}x{image.height} pixels, at most {MAX_SOURCE_SIDE} a side are accepted'
                )
            image.draft('RGB', (2 * max_side, 2 * max_side))
            image.load()
            image = ImageOps.exif_transpose(image)
            image = _to_8_bit(image).convert(mode)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnusableImageError(f'{path}: cannot be decoded ({error})') from error
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return image


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I'):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return image


def crop_to_object(image: Image.Image) -> Image.Image | None:
    """Crop an RGBA picture to its opaque part; None if nothing is opaque."""
    box = image.getchannel('A').point(lambda alpha: 255 * (alpha > 127)).getbbox()
    return None if box is None else image.crop(box)


def is_photo_like(image: Image.Image, max_flatness: float = 0.45, min_entropy: float = 4.2) -> bool:
    """Tell a photographic cut-out from a drawing.

    Drawings have large areas of exactly one colour and few colours; photos have noise and smooth histograms.

    Args:
        image (Image.Image): RGBA, at its original size (scaling would invent colours).
        max_flatness (float): Highest share of neighbouring opaque pixels that are identical.
        min_entropy (float): Lowest entropy in bits of the histogram of opaque colours with 5 bits per channel.

    Returns:
        bool: Whether both limits are kept.
    """
    pixels = np.asarray(image).astype(np.int32)
    opaque = pixels[..., 3] > 127
    neighbours = opaque[:, 1:] & opaque[:, :-1]
    if not neighbours.any():
        return False
    flatness = (pixels[:, 1:, :3] == pixels[:, :-1, :3]).all(-1)[neighbours].mean()
    return bool(flatness <= max_flatness) and color_entropy(pixels[..., :3][opaque]) >= min_entropy


def color_entropy(colors: np.ndarray) -> float:
    """Entropy in bits of the histogram of (N, 3) 8-bit colours, quantised to 5 bits per channel."""
    keys = (colors.astype(np.int64) >> 3) @ (1024, 32, 1)
    share = np.unique(keys, return_counts=True)[1] / len(keys)
    return float(-(share * np.log2(share)).sum())


def has_real_alpha(image: Image.Image, min_side: int = 40, coverage: tuple[float, float] = (0.1, 0.97)) -> bool:
    """Whether an RGBA picture, cropped to its object, shows one of usable size with something around it."""
    opaque = (np.asarray(image.getchannel('A')) > 127).mean()
    return max(image.size) >= min_side and coverage[0] <= opaque <= coverage[1]


def signature(image: Image.Image) -> np.ndarray:
    """A (576,) unit vector of a picture's brightness pattern; its scalar products are correlations."""
    canvas = Image.new('RGBA', image.size, (128, 128, 128, 255))
    canvas.alpha_composite(image.convert('RGBA'))
    grey = canvas.convert('L').resize((SIGNATURE_SIDE, SIGNATURE_SIDE), Image.Resampling.BOX)
    pattern = np.asarray(grey, np.float64)
    pattern -= pattern.mean()
    return (pattern / max(np.linalg.norm(pattern), 1e-6)).ravel()


def near_duplicates(signatures: list[np.ndarray], threshold: float = 0.955) -> list[tuple[int, int]]:
    """Find pictures that repeat an earlier one: at another size, mirrored, or slightly changed.

    Args:
        signatures (list[np.ndarray]): Results of :func:`signature`.
        threshold (float): The correlation from which two pictures count as the same.

    Returns:
        list[tuple[int, int]]: Pairs (index of the repetition, index of the picture that is kept), at most one per
        repetition.
    """
    kept: list[int] = []
    repeated = []
    for index, pattern in enumerate(signatures):
        mirrored = pattern.reshape(SIGNATURE_SIDE, SIGNATURE_SIDE)[:, ::-1].ravel()
        same = [k for k in kept if max(signatures[k] @ pattern, signatures[k] @ mirrored) >= threshold]
        if same:
            repeated.append((index, same[0]))
        else:
            kept.append(index)
    return repeated
