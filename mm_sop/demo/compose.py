"""Compose cut-outs on photos, with exact masks of the visible pixels.

All functions draw random numbers only from the given generator. Colors are float32 in [0, 1], patches are (H, W, 4)
with RGB premultiplied by alpha, sizes are (width, height) in pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np

from mm_sop.demo.assets import Cutout, Photo, Split

Range = tuple[float, float]

REFERENCE_SIDE = 64
PLACEMENT_TRIES = 8
MASK_ALPHA = 0.5
# Lowest and highest value by setting.
LIMITS = {
    (0.01, 1): ('object_scale', 'background_crop', 'distractor_scale', 'occluder_scale'),
    (0, 1): ('occluder_probability', 'overhang', 'spread', 'min_visible'),
    (0, 10): ('feather', 'background_contrast', 'background_saturation'),
    (0, 100): ('background_blur', 'distractors'),
    (1, 100): ('objects',),
    (0, 180): ('rotation',),
    (-1, 1): ('background_brightness',),
}


@dataclass(frozen=True)
class Style:
    """How images are composed. Ranges are sampled uniformly; lengths are relative to the shorter image side."""

    object_scale: Range = (0.65, 1.0)  # Longer side of an object after rotation
    objects: tuple[int, int] = (1, 1)  # Minimum and maximum number of labeled objects
    rotation: float = 15.0  # Maximum rotation in degrees, in both directions
    feather: Range = (0.35, 0.6)  # Sigma in pixels of the softened alpha edge
    background_crop: Range = (0.3, 1.0)  # Side of the crop relative to the largest possible one
    background_blur: Range = (0.5, 4.0)  # Sigma in pixels of an image with 64 pixels per side
    background_contrast: Range = (0.3, 0.8)  # Factor of the difference from the mean color
    background_saturation: Range = (0.0, 0.5)  # Factor of the difference from gray
    background_brightness: Range = (-0.2, 0.2)  # Offset; 1 turns black into white
    distractors: tuple[int, int] = (0, 1)  # Minimum and maximum number of unlabeled objects behind the labeled ones
    distractor_scale: Range = (0.2, 0.5)  # Longer side of a distractor
    occluder_probability: float = 0.3  # Probability of an unlabeled occluder in front of each object
    occluder_scale: Range = (0.15, 0.35)  # Longer side of an occluder relative to the object's longer side
    overhang: float = 0.0  # Fraction of an object's sides that may lie outside the image
    spread: float = 1.0  # Fraction of the free space around the central position that is used; 0 centers every object
    min_visible: float = 0.6  # Minimum visible fraction of an object's mask inside the image

    def __post_init__(self) -> None:
        for (least, most), names in LIMITS.items():
            for name in names:
                value = getattr(self, name)
                low, high = value if isinstance(value, tuple) else (value, value)
                if not least <= low <= high <= most:
                    raise ValueError(f'Style.{name} must lie in [{least}, {most}], the lower end first; got {value}')


OBJECT_CENTERED = Style()
SCENE = Style(
    object_scale=(0.2, 0.8),
    objects=(1, 4),
    background_crop=(0.5, 1.0),
    background_blur=(0.0, 0.0),
    background_contrast=(1.0, 1.0),
    background_saturation=(1.0, 1.0),
    background_brightness=(0.0, 0.0),
    distractors=(0, 3),
    distractor_scale=(0.15, 0.4),
    overhang=0.15,
    min_visible=0.35,
)


@dataclass
class Canvas:
    """Image under construction, with the label of the topmost object at every pixel.

    Args:
        image (np.ndarray): (H, W, 3) float32 background; modified in place.

    Attributes:
        labels (np.ndarray): (H, W) int32; k + 1 where the k-th painted object is on top, 0 elsewhere.
        areas (list[int]): Mask pixels of each object before anything covered it.
    """

    image: np.ndarray
    labels: np.ndarray = field(init=False)
    areas: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.labels = np.zeros(self.image.shape[:2], np.int32)

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[0]

    def mask(self, index: int) -> np.ndarray:
        """Mask, (H, W) bool, of the visible pixels of object ``index``."""
        return self.labels == index + 1

    def visible(self, index: int) -> float:
        """Visible fraction of the mask of object ``index``."""
        return np.count_nonzero(self.mask(index)) / max(self.areas[index], 1)

    def can_paint(self, patch: np.ndarray, position: tuple[int, int], min_visible: float) -> bool:
        """Whether a patch at (x, y) would be visible and leave at least ``min_visible`` of every object visible."""
        window, part = _overlap(patch, position, self.size)
        covered = self.labels[window][part[..., 3] >= MASK_ALPHA]
        if not len(covered):
            return False
        counts = np.bincount(covered, minlength=len(self.areas) + 1)[1:]
        left = [self.visible(i) - counts[i] / max(area, 1) for i, area in enumerate(self.areas)]
        return all(fraction >= min_visible for fraction in left)

    def paint(self, patch: np.ndarray, position: tuple[int, int], is_object: bool = False) -> None:
        """Paint a patch with its upper left corner at (x, y) over everything painted before."""
        window, part = _overlap(patch, position, self.size)
        self.image[window] *= 1 - part[..., 3:]
        self.image[window] += part[..., :3]
        solid = part[..., 3] >= MASK_ALPHA
        if is_object:
            self.areas.append(int(np.count_nonzero(solid)))
        self.labels[window][solid] = len(self.areas) if is_object else 0

    def paint_at_first(
        self, patch: np.ndarray, positions: Iterable[tuple[int, int]], min_visible: float, is_object: bool = False
    ) -> bool:
        """Paint a patch at the first position where it can be painted; return whether there was one."""
        position = next((p for p in positions if self.can_paint(patch, p, min_visible)), None)
        if position is not None:
            self.paint(patch, position, is_object)
        return position is not None

    def to_uint8(self) -> np.ndarray:
        return to_uint8(self.image)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert an image with values in [0, 1], others are clipped, to 8 bits."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _overlap(patch: np.ndarray, position: tuple[int, int], size: tuple[int, int]) -> tuple[tuple, np.ndarray]:
    """Return the window of the canvas that a patch covers, and the part of the patch inside the canvas."""
    x, y = position
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + patch.shape[1], size[0]), min(y + patch.shape[0], size[1])
    right, bottom = max(right, left), max(bottom, top)
    return np.s_[top:bottom, left:right], patch[top - y : bottom - y, left - x : right - x]


def crop_photo(photo: np.ndarray, size: tuple[int, int], crop: Range, rng: np.random.Generator) -> np.ndarray:
    """Crop a random window with the aspect ratio of the result from a photo and scale it.

    Args:
        photo (np.ndarray): (H, W, 3) uint8.
        size (tuple[int, int]): Size of the result, which is float32 and mirrored with probability 0.5.
        crop (Range): Side of the window relative to the largest one; windows smaller than the result are avoided if
            the photo is large enough.
        rng (np.random.Generator): Source of randomness.
    """
    height, width = photo.shape[:2]
    largest = min(width / size[0], height / size[1])
    scale = max(rng.uniform(*crop) * largest, min(1.0, largest))
    w, h = (max(min(round(scale * s), limit), 1) for s, limit in zip(size, (width, height), strict=True))
    x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
    window = photo[y : y + h, x : x + w]
    if rng.random() < 0.5:
        window = window[:, ::-1]
    return _resize(window, size).astype(np.float32) / 255


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = size[0] <= image.shape[1] and size[1] <= image.shape[0]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def soften_background(image: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Blur a background and change its contrast, brightness and saturation within the ranges of a style."""
    sigma = rng.uniform(*style.background_blur) * min(image.shape[:2]) / REFERENCE_SIDE
    if sigma > 0:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    mean = image.mean((0, 1))
    contrast, brightness = rng.uniform(*style.background_contrast), rng.uniform(*style.background_brightness)
    image = mean + contrast * (image - mean) + brightness
    gray = image.mean(2, keepdims=True)
    return np.clip(gray + rng.uniform(*style.background_saturation) * (image - gray), 0, 1).astype(np.float32)


def draw_background(photos: list[Photo], size: tuple[int, int], style: Style, rng: np.random.Generator) -> np.ndarray:
    """Draw a random crop of a random photo in a style: (height, width, 3) float32."""
    photo = photos[rng.integers(len(photos))]
    return soften_background(crop_photo(photo.image, size, style.background_crop, rng), style, rng)


def warp_cutout(image: np.ndarray, side: int, angle: float, mirrored: bool, feather: float) -> np.ndarray:
    """Mirror, rotate, scale and feather a cut-out.

    Args:
        image (np.ndarray): (H, W, 4) uint8, premultiplied.
        side (int): Longer side of the resulting float32 patch in pixels.
        angle (float): Degrees, counter-clockwise.
        mirrored (bool): Whether to mirror left to right first.
        feather (float): Sigma in pixels; 0 leaves the edge unchanged.
    """
    if mirrored:
        image = image[:, ::-1]
    image = _rotate(image, angle) if angle else image
    scale = side / max(image.shape[:2])
    h, w = (max(round(scale * length), 1) for length in image.shape[:2])
    patch = feather_edge(_resize(np.ascontiguousarray(image), (w, h)).astype(np.float32) / 255, feather)
    # Thin objects fade when they are downscaled and feathered; without a solid pixel they would have no mask.
    return patch / max(patch[..., 3].max(), 1e-6)


def _rotate(image: np.ndarray, angle: float) -> np.ndarray:
    """Rotate an image without cutting its corners off, and crop it to its solid pixels."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    # With a tolerance, because a rotation by 90 degrees must not gain a pixel from rounding.
    w, h = (int(np.ceil(length - 1e-6)) for length in (width * cos + height * sin, width * sin + height * cos))
    matrix[:, 2] += (w - width) / 2, (h - height) / 2  # type: ignore[misc]  # of floats, unlike in OpenCV's stubs
    rotated = cv2.warpAffine(image, matrix, (w, h), flags=cv2.INTER_LINEAR)
    x, y, w, h = find_box(rotated[..., 3] > 127)
    return rotated[y : y + h, x : x + w] if w else rotated


def find_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the box (x, y, width, height) of an (H, W) mask, all 0 if it is empty."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return x, y, width, height


def feather_edge(patch: np.ndarray, sigma: float) -> np.ndarray:
    """Soften the alpha edge inwards, because there is no color outside the object."""
    if sigma <= 0:
        return patch
    alpha = patch[..., 3]
    softened = cv2.GaussianBlur(alpha, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    factor = np.minimum(softened / np.maximum(alpha, 1e-6), 1)
    return patch * factor[..., None]


def draw_cutout(cutout: Cutout, side: int, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Draw a cut-out at a given longer side, randomly rotated and, where allowed, mirrored."""
    angle = rng.uniform(-style.rotation, style.rotation)
    mirrored = rng.random() < 0.5
    return warp_cutout(cutout.image, side, angle, mirrored and cutout.mirror, rng.uniform(*style.feather))


def draw_clutter(split: Split, side: int, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Draw an unlabeled object: a distractor cut-out, or photo texture in the shape of one or of an ellipse."""
    silhouette = None
    if split.distractors:
        silhouette = draw_cutout(split.distractors[rng.integers(len(split.distractors))], side, style, rng)
        if rng.random() < 0.5:
            return silhouette
    if silhouette is None or rng.random() < 0.3:
        feather, height = rng.uniform(*style.feather), max(round(side * rng.uniform(0.4, 1.0)), 1)
        y, x = np.mgrid[:height, :side]
        inside = ((x + 0.5) / side * 2 - 1) ** 2 + ((y + 0.5) / height * 2 - 1) ** 2 <= 1
        ellipse = np.repeat(inside[..., None].astype(np.uint8) * 255, 4, -1)
        silhouette = feather_edge(warp_cutout(ellipse, side, rng.uniform(0, 180), False, 0), feather)
    photo, alpha = split.photos[rng.integers(len(split.photos))], silhouette[..., 3:]
    texture = crop_photo(photo.image, silhouette.shape[1::-1], (0.1, 0.5), rng)
    return np.concatenate([texture * alpha, alpha], axis=-1)


def draw_position(
    patch: np.ndarray, size: tuple[int, int], rng: np.random.Generator, overhang: float = 0.0, spread: float = 1.0
) -> tuple[int, int]:
    """Draw an upper left corner (x, y) for a patch; see ``overhang`` and ``spread`` of :class:`Style`."""
    corner = []
    for length, limit in zip((patch.shape[1], patch.shape[0]), size, strict=True):
        center = (limit - length) / 2
        room = abs(center + int(overhang * length)) * spread
        corner.append(round(center + rng.uniform(-room, room)))
    return corner[0], corner[1]


def paint_object(canvas: Canvas, cutout: Cutout, style: Style, rng: np.random.Generator) -> bool:
    """Paint a labeled object where all others stay visible enough; return False if no position was found."""
    side = max(round(rng.uniform(*style.object_scale) * min(canvas.size)), 1)
    patch = draw_cutout(cutout, side, style, rng)
    positions = (draw_position(patch, canvas.size, rng, style.overhang, style.spread) for _ in range(PLACEMENT_TRIES))
    return canvas.paint_at_first(patch, positions, style.min_visible, is_object=True)


def paint_distractors(canvas: Canvas, split: Split, style: Style, rng: np.random.Generator) -> None:
    """Paint distractors; call this before the objects are painted."""
    for _ in range(rng.integers(style.distractors[0], style.distractors[1] + 1)):
        side = max(round(rng.uniform(*style.distractor_scale) * min(canvas.size)), 1)
        patch = draw_clutter(split, side, style, rng)
        canvas.paint(patch, draw_position(patch, canvas.size, rng, overhang=0.5))


def paint_occluder(canvas: Canvas, index: int, split: Split, style: Style, rng: np.random.Generator) -> bool:
    """Paint an occluder over object ``index`` that leaves enough of every object visible; False if none fits."""
    rows, columns = np.nonzero(canvas.mask(index))
    if not len(rows):
        return False
    length = max(np.ptp(rows), np.ptp(columns)) + 1
    patch = draw_clutter(split, max(round(rng.uniform(*style.occluder_scale) * length), 1), style, rng)
    height, width = patch.shape[:2]
    pixels = (rng.integers(len(rows)) for _ in range(PLACEMENT_TRIES))
    positions = ((int(columns[pixel]) - width // 2, int(rows[pixel]) - height // 2) for pixel in pixels)
    return canvas.paint_at_first(patch, positions, style.min_visible)


def compose(
    cutouts: list[Cutout],
    split: Split,
    style: Style,
    size: tuple[int, int],
    rng: np.random.Generator,
    background: np.ndarray | None = None,
) -> tuple[Canvas, list[Cutout]]:
    """Compose one image: background, distractors, objects, occluders.

    Args:
        cutouts (list[Cutout]): Objects from back to front; those without a suitable position are omitted.
        split (Split): Source of photos and distractors.
        style (Style): How the image is composed.
        size (tuple[int, int]): Width and height in pixels.
        rng (np.random.Generator): Source of randomness.
        background (np.ndarray | None): (height, width, 3) float32 in [0, 1]. Defaults to None, drawn at random.

    Returns:
        tuple[Canvas, list[Cutout]]: The image, and its objects in the order of the labels.
    """
    canvas = Canvas(draw_background(split.photos, size, style, rng) if background is None else background.copy())
    paint_distractors(canvas, split, style, rng)
    placed = [cutout for cutout in cutouts if paint_object(canvas, cutout, style, rng)]
    for index in range(len(placed)):
        if rng.random() < style.occluder_probability:
            paint_occluder(canvas, index, split, style, rng)
    return canvas, placed
