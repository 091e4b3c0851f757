"""Boxes and masks of objects over their picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from mm_sop.visualization.style import LIGHT

_OPACITY = 0.45
_LINE = 3
_FONT = 18


def draw_detections(
    picture: np.ndarray, objects: Sequence[dict], classes: Sequence[str], min_side: int = 640
) -> Image.Image:
    """Draw objects with masks, boxes and labels; a class has the same colour in all pictures.

    Args:
        picture: RGB, uint8, (h, w, 3).
        objects: ``class``, ``score``, ``box`` in pixels and optionally ``mask``, (h, w), bool.
        classes: All classes, in the order of the detector.
        min_side: A picture whose longer side is shorter is enlarged to it, so that labels can be read.

    Returns:
        The picture with the objects of high score on top.
    """
    factor = max(1.0, min_side / max(picture.shape[:2]))
    colors = {name: LIGHT.series[index % len(LIGHT.series)] for index, name in enumerate(classes)}
    by_score = sorted(objects, key=lambda item: item['score'])
    canvas = Image.fromarray(picture)
    canvas = canvas.resize([round(side * factor) for side in canvas.size], Image.Resampling.BICUBIC)
    for item in by_score:
        if 'mask' in item:
            _tint(canvas, item['mask'], colors[item['class']])
    draw = ImageDraw.Draw(canvas)
    boxes = [[value * factor for value in item['box']] for item in by_score]
    for item, box in zip(by_score, boxes, strict=True):
        _outline(draw, box, colors[item['class']])
    for item, box in zip(by_score, boxes, strict=True):
        _label(draw, box, f'{item["class"]} {item["score"]:.2f}', colors[item['class']])
    return canvas


def _tint(canvas: Image.Image, mask: np.ndarray, color: str) -> None:
    opacity = Image.fromarray((255 * _OPACITY * mask).astype(np.uint8)).resize(canvas.size, Image.Resampling.BILINEAR)
    canvas.paste(Image.new('RGB', canvas.size, color), mask=opacity)


def _outline(draw: ImageDraw.ImageDraw, box: Sequence[float], color: str) -> None:
    left, top, right, bottom = box
    draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=_LINE)


def _label(draw: ImageDraw.ImageDraw, box: Sequence[float], text: str, color: str) -> None:
    """Write on a tag above the box, or inside of it where there is no room above."""
    font = ImageFont.load_default(_FONT)
    width, height = font.getlength(text) + 8, _FONT + 6
    left = max(min(box[0], draw.im.size[0] - width), 0)
    top = box[1] - height if box[1] >= height else box[1]
    draw.rectangle((left, top, left + width, top + height), fill=color)
    bright = sum(ImageColor.getrgb(color)) > 3 * 140
    draw.text((left + 4, top + height / 2), text, fill='black' if bright else 'white', font=font, anchor='lm')
