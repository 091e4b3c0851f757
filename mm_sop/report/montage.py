"""Rows of small images with captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

RIGHT = '#009e73'
WRONG = '#d55e00'
# Legible on white and on black.
_CAPTION_COLOR = '#808488'

# In pixels.
_FRAME = 6
_GAP = 8
_CAPTION_HEIGHT = 26


@dataclass(frozen=True)
class Tile:
    """One image of a montage: RGB, uint8, (h, w, 3), with a short text below it and a frame of a color, or None."""

    image: np.ndarray
    caption: str = ''
    frame: str | None = None


def montage(rows: Sequence[Sequence[Tile]], side: int = 128, columns: int | None = None) -> Image.Image:
    """Arrange tiles in rows on a transparent background; the gap after the first tile of a row is wider.

    Args:
        rows: Tiles of every row.
        side: Longer side of every image in pixels; montages are shown at half their size.
        columns: Maximum tiles per row; longer rows are continued below, from the second column on.
    """
    wrapped: list[list[Tile | None]] = []
    for row in rows:
        wrapped.append(list(row[:columns]))
        if columns is not None:
            starts = range(columns, len(row), columns - 1)
            wrapped += [[None, *row[start : start + columns - 1]] for start in starts]
    tiles = [tile for row in wrapped for tile in row if tile is not None]
    height = max(_scaled_size(tile.image, side)[1] for tile in tiles) + 2 * _FRAME
    height += _CAPTION_HEIGHT if any(tile.caption for tile in tiles) else 0
    width = side + 2 * _FRAME
    total_width = max(_offset(len(row) - 1, width) + width for row in wrapped)
    canvas = Image.new('RGBA', (total_width, len(wrapped) * (height + _GAP) - _GAP))
    for row_index, shown in enumerate(wrapped):
        for column, tile in enumerate(shown):
            if tile is not None:
                _paste(canvas, tile, side, _offset(column, width), row_index * (height + _GAP))
    return canvas


def to_png(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    buffer = BytesIO()
    image.save(buffer, format='PNG', compress_level=4)
    return buffer.getvalue()


def to_image(pixels: Tensor, is_bgr: bool) -> np.ndarray:
    """Convert a uint8 tensor of the pipeline, (C, h, w), to an RGB image, (h, w, 3)."""
    image = pixels.permute(1, 2, 0).cpu().numpy()
    if image.shape[2] == 1:
        return image.repeat(3, axis=2)
    return np.ascontiguousarray(image[..., ::-1] if is_bgr else image)


def _offset(column: int, width: int) -> int:
    """Left edge of a column."""
    return column * (width + _GAP) + (2 * _GAP if column else 0)


def _scaled_size(image: np.ndarray, side: int) -> tuple[int, int]:
    height, width = image.shape[:2]
    factor = side / max(height, width)
    return round(width * factor), round(height * factor)


def _paste(canvas: Image.Image, tile: Tile, side: int, left: int, top: int) -> None:
    width, height = _scaled_size(tile.image, side)
    image = Image.fromarray(tile.image).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    if tile.frame:
        box = (left, top, left + width + 2 * _FRAME - 1, top + height + 2 * _FRAME - 1)
        draw.rounded_rectangle(box, radius=_FRAME, fill=tile.frame)
    canvas.paste(image, (left + _FRAME, top + _FRAME))
    if tile.caption:
        font = ImageFont.load_default(20)
        center = left + _FRAME + width // 2, top + height + 2 * _FRAME + _CAPTION_HEIGHT // 2
        text, shown = tile.caption, tile.caption
        while text and font.getlength(shown) > side:
            text = text[:-1]
            shown = f'{text}...'
        draw.text(center, shown, fill=_CAPTION_COLOR, font=font, anchor='mm')
