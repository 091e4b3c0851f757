"""Rows of small pictures with captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

RIGHT = '#009e73'
WRONG = '#d55e00'
# Readable on white and on black.
_CAPTION = '#808488'

_FRAME = 6
_GAP = 8
_LINE = 26


@dataclass(frozen=True)
class Tile:
    """One picture of a montage.

    Attributes:
        picture: RGB, uint8, (h, w, 3).
        caption: Short text below.
        frame: Colour of a frame, or None.
    """

    picture: np.ndarray
    caption: str = ''
    frame: str | None = None


def montage(rows: Sequence[Sequence[Tile]], side: int = 128, columns: int | None = None) -> Image.Image:
    """Set tiles in rows, the first tile of a row apart from the others.

    Args:
        rows: Tiles of every row.
        side: Longer side of a picture in the result, which is meant to be shown at half its size.
        columns: Tiles after which a row goes on below. Defaults to None, never.

    Returns:
        Picture with a transparent background.
    """
    rows = [part for row in rows for part in _wrap(row, columns)]
    tile_height = max(_scaled_size(tile.picture, side)[1] for row in rows for tile in row if tile)
    height = tile_height + 2 * _FRAME + (_LINE if any(tile.caption for row in rows for tile in row if tile) else 0)
    width = side + 2 * _FRAME
    canvas = Image.new(
        'RGBA', (max(_offset(len(row) - 1, width) + width for row in rows), len(rows) * (height + _GAP) - _GAP)
    )
    for row_index, row in enumerate(rows):
        for column, tile in enumerate(row):
            if tile is not None:
                _paste(canvas, tile, side, _offset(column, width), row_index * (height + _GAP))
    return canvas


def to_png(image: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    buffer = BytesIO()
    image.save(buffer, format='PNG', compress_level=4)
    return buffer.getvalue()


def to_picture(image: Tensor, is_bgr: bool) -> np.ndarray:
    """Turn a uint8 tensor of the pipeline, (C, h, w), into an RGB picture, (h, w, 3)."""
    picture = image.permute(1, 2, 0).cpu().numpy()
    if picture.shape[2] == 1:
        return picture.repeat(3, axis=2)
    return np.ascontiguousarray(picture[..., ::-1] if is_bgr else picture)


def _wrap(row: Sequence[Tile], columns: int | None) -> list[list[Tile | None]]:
    """Cut a long row; the continuation leaves the first place empty."""
    if columns is None or len(row) <= columns:
        return [list(row)]
    rest = [[None, *row[start : start + columns - 1]] for start in range(columns, len(row), columns - 1)]
    return [list(row[:columns]), *rest]


def _offset(column: int, width: int) -> int:
    """Left edge of a column; the gap after the first one is wider."""
    return column * (width + _GAP) + (2 * _GAP if column else 0)


def _scaled_size(picture: np.ndarray, side: int) -> tuple[int, int]:
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    return round(width * factor), round(height * factor)


def _paste(canvas: Image.Image, tile: Tile, side: int, left: int, top: int) -> None:
    size = _scaled_size(tile.picture, side)
    picture = Image.fromarray(tile.picture).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    if tile.frame:
        box = (left, top, left + size[0] + 2 * _FRAME - 1, top + size[1] + 2 * _FRAME - 1)
        draw.rounded_rectangle(box, radius=_FRAME, fill=tile.frame)
    canvas.paste(picture, (left + _FRAME, top + _FRAME))
    if tile.caption:
        font = ImageFont.load_default(20)
        middle, below = left + _FRAME + size[0] // 2, top + size[1] + 2 * _FRAME + _LINE // 2
        draw.text((middle, below), _shorten(tile.caption, font, side), fill=_CAPTION, font=font, anchor='mm')


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f'{text}...') > width:
        text = text[:-1]
    return f'{text}...'
