"""Safe decoding of source images, and the criteria by which they are selected."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mm_sop.utils.failures import UserError
from mm_sop.utils.files import open_regular

MAX_SOURCE_SIDE = 12_000
SIGNATURE_SIDE = 24


class UnusableImageError(UserError, ValueError):
    """Source image that cannot be decoded or is too large."""


def read_image(path: str | Path, mode: str, max_side: int) -> Image.Image:
    """Decode an image of any common kind in a mode, ``'RGB'`` or ``'RGBA'``, and shrink it to ``max_side`` pixels.

    JPEG files are decoded at a reduced scale if possible. Palettes, CMYK, alpha, 16-bit gray and EXIF orientation are
    supported. ``info['original_size']`` of the result holds the width and height in the file.

    Raises:
        UnusableImageError: If the file is not an image, is truncated, or has a side above 12,000 pixels.
    """
    try:
        with open_regular(path) as file, Image.open(file) as image:
            original_size = image.size
            if max(original_size) > MAX_SOURCE_SIDE:
                raise UnusableImageError(
                    f'{path}: {image.width}x{image.height} pixels, at most {MAX_SOURCE_SIDE} per side are accepted'
                )
            image.draft('RGB', (2 * max_side, 2 * max_side))
            image.load()
            decoded = ImageOps.exif_transpose(image)
            if decoded.mode.startswith('I'):
                # 16-bit gray.
                decoded = Image.fromarray((np.asarray(decoded).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
            decoded = decoded.convert(mode)
            decoded.info['original_size'] = original_size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnusableImageError(f'{path}: cannot be decoded ({error})') from error
    decoded.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return decoded


def crop_to_object(image: Image.Image) -> Image.Image | None:
    """Crop an RGBA image to its opaque region; None if nothing is opaque."""
    box = image.getchannel('A').point(lambda alpha: 255 * (alpha > 127)).getbbox()
    return None if box is None else image.crop(box)


def is_photo_like(image: Image.Image, max_flatness: float = 0.45, min_entropy: float = 4.2) -> bool:
    """Distinguish a photographic cut-out from a drawing.

    Drawings have few colors and large areas of exactly one color; photos have noise and smooth histograms.

    Args:
        image (Image.Image): RGBA, at its original size because scaling would create new colors.
        max_flatness (float): Maximum fraction of neighboring opaque pixels that are identical.
        min_entropy (float): Minimum entropy in bits of the histogram of opaque colors with 5 bits per channel.
    """
    pixels = np.asarray(image).astype(np.int32)
    opaque = pixels[..., 3] > 127
    neighbors = opaque[:, 1:] & opaque[:, :-1]
    if not neighbors.any():
        return False
    flatness = (pixels[:, 1:, :3] == pixels[:, :-1, :3]).all(-1)[neighbors].mean()
    _, counts = np.unique((pixels[..., :3][opaque] >> 3) @ np.array((1024, 32, 1)), return_counts=True)
    fractions = counts / counts.sum()
    return bool(flatness <= max_flatness and -(fractions * np.log2(fractions)).sum() >= min_entropy)


def has_real_alpha(image: Image.Image, min_side: int = 40, coverage: tuple[float, float] = (0.1, 0.97)) -> bool:
    """Whether an RGBA image, cropped to its object, has a usable size and a transparent surrounding."""
    opaque = (np.asarray(image.getchannel('A')) > 127).mean()
    return max(image.size) >= min_side and coverage[0] <= opaque <= coverage[1]


def signature(image: Image.Image) -> np.ndarray:
    """Compute a (576,) unit vector of an image's brightness pattern; dot products are correlations."""
    canvas = Image.new('RGBA', image.size, (128, 128, 128, 255))
    canvas.alpha_composite(image.convert('RGBA'))
    gray = canvas.convert('L').resize((SIGNATURE_SIDE, SIGNATURE_SIDE), Image.Resampling.BOX)
    pattern = np.asarray(gray, np.float64)
    pattern -= pattern.mean()
    return (pattern / max(float(np.linalg.norm(pattern)), 1e-6)).ravel()


def near_duplicates(signatures: list[np.ndarray], threshold: float = 0.955) -> list[tuple[int, int]]:
    """Find images that repeat an earlier one at another size, mirrored, or slightly changed.

    Args:
        signatures (list[np.ndarray]): Results of :func:`signature`.
        threshold (float): Minimum correlation of images that count as the same.

    Returns:
        list[tuple[int, int]]: Index of each repetition, and of the first retained image that it repeats.
    """
    retained: list[int] = []
    repeated = []
    for index, pattern in enumerate(signatures):
        mirrored = pattern.reshape(SIGNATURE_SIDE, SIGNATURE_SIDE)[:, ::-1].ravel()
        same = [k for k in retained if max(signatures[k] @ pattern, signatures[k] @ mirrored) >= threshold]
        if same:
            repeated.append((index, same[0]))
        else:
            retained.append(index)
    return repeated
