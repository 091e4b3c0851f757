"""Predictions drawn over their image: boxes and masks of objects, label maps."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from mm_sop.report.montage import Tile
from mm_sop.report.style import LIGHT

_OPACITY = 0.45
_LINE_WIDTH = 3
_FONT_SIZE = 18


def draw_detections(
    image: np.ndarray, objects: Sequence[dict], classes: Sequence[str], min_side: int = 640
) -> Image.Image:
    """Draw objects with masks, boxes and labels; a class has the same color in all images.

    MMDetection's ``DetLocalVisualizer`` scales the labels with the area of the objects, so that those of small
    objects cannot be read, hides more of the image, and takes 15 times as long (1.3 s instead of 0.08 s for an image
    of 640 x 512 pixels with two objects).

    Args:
        image: RGB, uint8, (h, w, 3).
        objects: ``class``, ``score``, ``box`` (x1, y1, x2, y2) in pixels and optionally ``mask``, (h, w), bool.
        classes: All classes, in the order of the detector.
        min_side: Images whose longer side is shorter are enlarged to it, so that labels are legible.

    Returns:
        The image, with the objects of the highest scores on top.
    """
    factor = max(1.0, min_side / max(image.shape[:2]))
    colors = {name: LIGHT.series[index % len(LIGHT.series)] for index, name in enumerate(classes)}
    by_score = sorted(objects, key=lambda item: item['score'])
    canvas = Image.fromarray(image)
    canvas = canvas.resize([round(side * factor) for side in canvas.size], Image.Resampling.BICUBIC)
    for item in by_score:
        if 'mask' in item:
            opacity = Image.fromarray((255 * _OPACITY * item['mask']).astype(np.uint8))
            opacity = opacity.resize(canvas.size, Image.Resampling.BILINEAR)
            canvas.paste(Image.new('RGB', canvas.size, colors[item['class']]), mask=opacity)
    draw = ImageDraw.Draw(canvas)
    boxes = [[value * factor for value in item['box']] for item in by_score]
    for item, (left, top, right, bottom) in zip(by_score, boxes, strict=True):
        corners = (left, top, max(left, right), max(top, bottom))
        draw.rectangle(corners, outline=colors[item['class']], width=_LINE_WIDTH)
    for item, box in zip(by_score, boxes, strict=True):
        _draw_label(draw, canvas.width, box, f'{item["class"]} {item["score"]:.2f}', colors[item['class']])
    return canvas


def _draw_label(draw: ImageDraw.ImageDraw, canvas_width: int, box: Sequence[float], text: str, color: str) -> None:
    """Write on a tag above the box, or inside the box if there is no room above."""
    font = ImageFont.load_default(_FONT_SIZE)
    width, height = font.getlength(text) + 8, _FONT_SIZE + 6
    left = max(min(box[0], canvas_width - width), 0)
    top = box[1] - height if box[1] >= height else box[1]
    draw.rectangle((left, top, left + width, top + height), fill=color)
    is_bright = sum(ImageColor.getrgb(color)) > 3 * 140
    draw.text((left + 4, top + height / 2), text, fill='black' if is_bright else 'white', font=font, anchor='lm')


def segmentation_row(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> list[Tile]:
    """Draw an image, its true label map with class names, and the predicted one with its pixel accuracy.

    Args:
        image: RGB, uint8, (h, w, 3).
        truth: True classes, (h, w); values beyond ``classes`` are ignored.
        prediction: Predicted classes, (h, w).
        classes: Class names.
        palette: RGB of every class, 0 ... 255.
    """
    labeled = truth < len(classes)
    labels, counts = np.unique(truth[labeled], return_counts=True)
    names = [classes[label] for label in labels[np.argsort(-counts)]]
    right = f'{100 * np.mean(prediction[labeled] == truth[labeled]):.0f} % right' if labeled.any() else 'no labels'
    return [
        Tile(image, 'image'),
        Tile(overlay_labels(image, truth, palette), ', '.join(names)),
        Tile(overlay_labels(image, prediction, palette), f'prediction, {right}'),
    ]


def overlay_labels(
    image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]], opacity: float = 0.6
) -> np.ndarray:
    """Overlay an image with the colors of a label map.

    Args:
        image: RGB, uint8, (h, w, 3).
        labels: Classes, (h, w); pixels beyond the palette, such as unlabeled ones, stay unchanged.
        palette: RGB of every class, 0 ... 255.
        opacity: Weight of the color, 0 ... 1.
    """
    known = labels < len(palette)
    colors = np.asarray(palette, np.float64)[np.where(known, labels, 0)]
    mixed = (1 - opacity) * image + opacity * colors
    return np.where(known[..., None], mixed, image).round().astype(np.uint8)
