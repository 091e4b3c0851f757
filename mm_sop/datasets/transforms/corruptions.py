"""The fifteen corruptions of ImageNet-C, for images of any size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

SEVERITIES = (1, 2, 3, 4, 5)

# Side of the images that the published strengths are for.
_SIDE = 224

_Function = Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        apply: Corrupts a BGR image in [0, 1], fp32, (H, W, 3), with a strength and a random generator.
        strengths: Published strengths of the severities 1 ... 5.
        family: ``'noise'``, ``'blur'``, ``'weather'`` or ``'digital'``.
    """

    apply: _Function
    strengths: Sequence
    family: str


CORRUPTIONS: dict[str, Corruption] = {}
"""All corruptions by name, grouped by family."""

ALEXNET_ERRORS: dict[str, float] = {}
"""Published mean errors of AlexNet over the severities, the unit of mCE (github.com/hendrycks/robustness)."""


def _register(family: str, *strengths, alexnet: float) -> Callable[[_Function], _Function]:
    """Enter a function and its strengths into :data:`CORRUPTIONS`, and AlexNet's error into :data:`ALEXNET_ERRORS`."""

    def register(function: _Function) -> _Function:
        CORRUPTIONS[function.__name__] = Corruption(function, strengths, family)
        ALEXNET_ERRORS[function.__name__] = alexnet
        return function

    return register


def corrupt(image: np.ndarray, name: str, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Corrupt an image as in ImageNet-C (Hendrycks and Dietterich, Benchmarking Neural Network Robustness).

    For images of 224 pixels, every corruption equals the published code up to rounding, with these exceptions: Frost is
    a synthetic pattern instead of photos. Defocus preserves the mean, whereas the published kernels of severities 4 and
    5 brighten by 1 %, and its disc has a soft edge (the change differs by less than 1 %). Results are rounded instead
    of truncated, and not compressed as JPEG of quality 85, unlike the published files. For other sizes, lengths are
    proportional to the shorter side.

    Args:
        image: BGR, uint8, (H, W, 3), as the result.
        name: One of :data:`CORRUPTIONS`.
        severity: 1 ... 5.
        generator: Source of randomness.

    Raises:
        ValueError: Name or severity is unknown.

    Example:
        >>> corrupt(np.full((8, 8, 3), 100, np.uint8), 'brightness', 1, np.random.default_rng(0))[0, 0].tolist()
        [126, 126, 126]
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f'no corruption {name!r} of severity {severity}: choose among {", ".join(CORRUPTIONS)} and 1 ... 5'
        )
    corruption = CORRUPTIONS[name]
    corrupted = corruption.apply(image.astype(np.float32) / 255, corruption.strengths[int(severity) - 1], generator)
    return (255 * corrupted.clip(0, 1)).round().astype(np.uint8)


# All corruptions share the interface of `Corruption.apply`, even those that draw no random numbers.


@_register('noise', 0.08, 0.12, 0.18, 0.26, 0.38, alexnet=0.886428)
def gaussian_noise(image, std, generator):
    return image + std * generator.standard_normal(image.shape, np.float32)


@_register('noise', 60, 25, 12, 5, 3, alexnet=0.894468)
def shot_noise(image, photons, generator):
    return generator.poisson(image * photons).astype(np.float32) / photons


@_register('noise', 0.03, 0.06, 0.09, 0.17, 0.27, alexnet=0.922640)
def impulse_noise(image, fraction, generator):
    uniform = generator.random(image.shape, np.float32)
    return np.where(uniform < fraction / 2, 0, np.where(uniform < fraction, 1, image))


@_register('blur', 3, 4, 6, 8, 10, alexnet=0.819880)
def defocus_blur(image, radius, generator):
    radius = radius * _scale(image)
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # Pixels at the edge count by the fraction that the disc covers, so that radii need not be integers.
    return _filter(image, (radius + 0.5 - np.hypot(y, x)).clip(0, 1))


@_register('blur', (0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2), alexnet=0.826268)
def glass_blur(image, strength, generator):
    sigma, distance, repeats = strength
    sigma, distance = sigma * _scale(image), distance * _scale(image)
    image = np.floor(255 * _blur(image, sigma)) / 255
    for _ in range(repeats):
        image = _shuffle_locally(image, distance, generator)
    return _blur(image, sigma)


@_register('blur', (10, 3), (15, 5), (15, 8), (15, 12), (20, 15), alexnet=0.785948)
def motion_blur(image, strength, generator):
    return _streak(image, *strength, generator.uniform(-45, 45))


@_register('blur', (1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03), alexnet=0.798360)
def zoom_blur(image, strength, generator):
    maximum, step = strength
    factors = np.arange(1, maximum, step)
    return (image + sum(_zoom(image, factor) for factor in factors)) / (len(factors) + 1)


@_register(
    'weather',
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    alexnet=0.866816,
)
def snow(image, strength, generator):
    mean, std, zoom, threshold, radius, sigma, visibility = strength
    flakes = _zoom(mean + std * generator.standard_normal(image.shape[:2], np.float32), zoom)
    flakes = np.floor(255 * np.where(flakes < threshold, 0, flakes).clip(0, 1)) / 255
    flakes = _streak(flakes, radius, sigma, generator.uniform(-135, -45))[..., None]
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]
    hazy = visibility * image + (1 - visibility) * np.maximum(image, 1.5 * gray + 0.5)
    return hazy + flakes + flakes[::-1, ::-1]


@_register('weather', (1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75), alexnet=0.826572)
def frost(image, strength, generator):
    visibility, opacity = strength
    # Ridges of rough noise look like ice crystals with clear glass in between.
    crystals = 1 - np.abs(2 * _octaves(image.shape[:2], 1.3, generator) - 1)
    coverage = _octaves(image.shape[:2], 1.8, generator)
    ice = np.array([1.0, 0.96, 0.88], np.float32) * (crystals**3 * (0.3 + coverage))[..., None]
    return visibility * image + opacity * ice


@_register('weather', (1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4), alexnet=0.819324)
def fog(image, strength, generator):
    amount, decay = strength
    haze = amount * _plasma(image.shape[:2], decay, generator)[..., None]
    brightest = image.max()
    return (image + haze) * brightest / (brightest + amount)


@_register('weather', 0.1, 0.2, 0.3, 0.4, 0.5, alexnet=0.564592)
def brightness(image, amount, generator):
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[..., 2] = (hsv[..., 2] + amount).clip(0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


@_register('digital', 0.4, 0.3, 0.2, 0.1, 0.05, alexnet=0.853204)
def contrast(image, factor, generator):
    mean = image.mean((0, 1))
    return factor * (image - mean) + mean


@_register(
    'digital',
    (2, 0.7, 0.1),
    (2, 0.08, 0.2),
    (0.05, 0.01, 0.02),
    (0.07, 0.01, 0.02),
    (0.12, 0.01, 0.02),
    alexnet=0.646056,
)
def elastic_transform(image, strength, generator):
    height, width = image.shape[:2]
    # 244 instead of 224, as published.
    alpha, sigma, shift = (244 * fraction * _scale(image) for fraction in strength)
    center, third = np.array([width, height]) // 2, min(height, width) // 3
    corners = (center + third * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    moved = corners + generator.uniform(-shift, shift, (3, 2)).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    image = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    field = generator.uniform(-1, 1, (2, height, width)).astype(np.float32)
    # Averages of fewer values are larger: one more factor makes the offsets proportional to the side, too.
    offsets = [_scale(image) * alpha * _blur(axis, sigma, 3, cv2.BORDER_REFLECT) for axis in field]
    y, x = np.mgrid[:height, :width]
    columns, rows = (x + offsets[1]).astype(np.float32), (y + offsets[0]).astype(np.float32)
    return cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


@_register('digital', 0.6, 0.5, 0.4, 0.3, 0.25, alexnet=0.717840)
def pixelate(image, factor, generator):
    height, width = image.shape[:2]
    full = Image.fromarray((255 * image).round().astype(np.uint8))
    small = full.resize((max(1, int(width * factor)), max(1, int(height * factor))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX), np.float32) / 255


@_register('digital', 25, 18, 15, 10, 7, alexnet=0.606500)
def jpeg_compression(image, quality, generator):
    _, data = cv2.imencode('.jpg', (255 * image).round().astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR).astype(np.float32) / 255


def _scale(image: np.ndarray) -> float:
    """Factor for lengths that are published for images of 224 pixels."""
    return min(image.shape[:2]) / _SIDE


def _filter(image: np.ndarray, kernel: np.ndarray, border: int = cv2.BORDER_REFLECT_101) -> np.ndarray:
    kernel = (kernel / kernel.sum()).astype(np.float32)
    return cv2.filter2D(image, -1, kernel, borderType=border)


def _blur(image: np.ndarray, sigma: float, truncate: float = 4, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    side = 2 * int(truncate * sigma + 0.5) + 1
    return cv2.GaussianBlur(image, (side, side), sigma, borderType=border)


def _shuffle_locally(image: np.ndarray, distance: float, generator: np.random.Generator) -> np.ndarray:
    """Replace each pixel by a nearby one, in sequence from the last to the first.

    The published code swaps two pixels, but because NumPy returns views of them, the second keeps its color. A pixel
    may copy one that has been replaced before: chains of references are followed to their ends, all pixels at once.
    """
    height, width = image.shape[:2]
    # Integer distances as published; others are rounded up for a fraction of the pixels.
    reach = np.floor(distance + generator.random((height, width)))
    rows, columns = np.floor(reach * generator.uniform(-1, 1, (2, height, width))).astype(int)
    margin = max(1, int(np.ceil(distance)))
    y, x = np.mgrid[:height, :width]
    copies = np.zeros((height, width), bool)
    copies[margin + 1 : height - margin + 1, margin + 1 : width - margin + 1] = True
    here = y * width + x
    source: np.ndarray = np.where(copies, (y + rows) * width + x + columns, here).ravel()
    is_replaced = copies.ravel()[source] & (source > here.ravel())
    while is_replaced.any():
        is_replaced, source = is_replaced & is_replaced[source], np.where(is_replaced, source[source], source)
    return image.reshape(height * width, -1)[source].reshape(image.shape)


def _zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge the center, and crop to the size of the image."""
    for axis, side in enumerate(image.shape[:2]):
        visible = int(np.ceil(side / factor))
        enlarged = round(visible * factor)
        margin = (enlarged - side) // 2
        positions = np.linspace(0, visible - 1, enlarged)[margin : margin + side] + (side - visible) // 2
        lower = np.floor(positions).astype(int)
        upper = np.minimum(lower + 1, side - 1)
        weight = (positions - lower).astype(np.float32).reshape([-1 if dim == axis else 1 for dim in range(image.ndim)])
        image = (1 - weight) * image.take(lower, axis) + weight * image.take(upper, axis)
    return image


def _streak(image: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
    """Motion blur to one side, with Gaussian weights."""
    steps = np.arange(2 * radius + 1)
    distances, direction = steps * _scale(image), np.deg2rad(angle)
    y, x = (np.ceil(distances * component - 0.5).astype(int) for component in (np.sin(direction), np.cos(direction)))
    reach = int(np.ceil(distances[-1]))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    np.add.at(kernel, (reach + y, reach + x), np.exp(-(steps**2) / (2 * sigma**2)))
    return _filter(image, kernel, cv2.BORDER_REPLICATE)


def _plasma(size: Sequence[int], decay: float, generator: np.random.Generator) -> np.ndarray:
    """Fractal in [0, 1] by the diamond-square algorithm on a torus; each octave is ``decay ** 2`` times weaker."""
    side = 1 << (max(size) - 1).bit_length()
    heights = np.zeros((side, side))
    step, amplitude = side, 1.0
    while step > 1:
        half = step // 2
        noise = amplitude * generator.uniform(-1, 1, (3, side // step, side // step))
        corners, centers = heights[::step, ::step], heights[half::step, half::step]
        rows, columns = corners + np.roll(corners, -1, 0), corners + np.roll(corners, -1, 1)
        centers[:] = (rows + np.roll(rows, -1, 1)) / 4 + noise[0]
        heights[::step, half::step] = (columns + centers + np.roll(centers, 1, 0)) / 4 + noise[1]
        heights[half::step, ::step] = (rows + centers + np.roll(centers, 1, 1)) / 4 + noise[2]
        step, amplitude = half, amplitude / decay**2
    heights -= heights.min()
    return (heights / heights.max())[: size[0], : size[1]].astype(np.float32)


def _octaves(size: Sequence[int], decay: float, generator: np.random.Generator) -> np.ndarray:
    """Cloudy noise in [0, 1]; each octave is twice as fine and ``decay ** 2`` times weaker."""
    noise: Any = np.zeros(size, np.float32)
    for octave in range(1, int(np.ceil(np.log2(max(size)))) + 1):
        coarse = generator.uniform(-1, 1, (2**octave + 1, 2**octave + 1)).astype(np.float32)
        noise += cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC) / decay ** (2 * octave)
    return (noise - noise.min()) / (noise.max() - noise.min())
