"""What is drawn over an image: boxes and masks of objects, label maps, heat maps."""

from collections.abc import Sequence

import matplotlib
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
        objects: ``class``, ``score``, ``box`` (x1, y1, x2, y2) in pixels and optionally ``mask``, (h, w), bool. Those
            of the highest scores are drawn on top.
        classes: All classes, in the order of the detector.
        min_side: Images whose longer side is shorter are enlarged to it, so that labels are legible.
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

    ``image`` is RGB, uint8, (h, w, 3), and the label maps are (h, w); true values beyond ``classes`` are ignored. The
    ``palette`` has the RGB of every class, 0 ... 255.
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
    """Overlay an RGB image, uint8, (h, w, 3), with the colors of a label map, (h, w).

    Pixels beyond the palette (RGB of every class, 0 ... 255), such as unlabeled ones, stay unchanged. ``opacity`` is
    the weight of the color, 0 ... 1.
    """
    known = labels < len(palette)
    colors = np.asarray(palette, np.float64)[np.where(known, labels, 0)]
    mixed = (1 - opacity) * image + opacity * colors
    return np.where(known[..., None], mixed, image).round().astype(np.uint8)


def overlay(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Color an image by a map, (h, w), from dark for its smallest to bright for its largest value.

    The image and the result are RGB, uint8, (H, W, 3).
    """
    low, high = weights.min(), weights.max()
    scaled = Image.fromarray(((weights - low) / max(high - low, 1e-12)).astype(np.float32))
    smooth = np.asarray(scaled.resize(image.shape[1::-1], Image.Resampling.BICUBIC)).clip(0, 1)
    heat = matplotlib.colormaps['inferno'](smooth)[..., :3]
    gray = image.mean(2, keepdims=True) / 255
    return (255 * (0.35 * gray + 0.65 * heat)).round().astype(np.uint8)
