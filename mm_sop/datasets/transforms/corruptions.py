"""The fifteen corruptions of ImageNet-C, drawn on pictures of any size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

SEVERITIES = (1, 2, 3, 4, 5)

# Side of the pictures for which the strengths were published.
_SIDE = 224


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        draw: Maps a BGR picture in [0, 1], fp32, (H, W, 3), a strength and a generator to the corrupted picture.
        strengths: Published strengths of the severities 1 ... 5.
        family: ``'noise'``, ``'blur'``, ``'weather'`` or ``'digital'``.
    """

    draw: Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]
    strengths: Sequence
    family: str


def corrupt(image: np.ndarray, name: str, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Corrupt a picture as in ImageNet-C (Hendrycks and Dietterich, Benchmarking Neural Network Robustness).

    Strengths are the published ones; lengths, which were chosen for pictures of 224 pixels, follow the shorter side.
    Three corruptions are drawn in another way to the same effect: frost is a pattern instead of photographs of it, fog
    adds up octaves of noise, and glass displaces each pixel on its own instead of exchanging neighbours one by one.

    Args:
        image: BGR, uint8, (H, W, 3).
        name: One of :data:`CORRUPTIONS`.
        severity: 1 ... 5.
        generator: Source of randomness.

    Returns:
        BGR, uint8, (H, W, 3).

    Raises:
        ValueError: Name or severity is unknown.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f'no corruption {name!r} of severity {severity}: choose among {", ".join(CORRUPTIONS)} and 1 ... 5'
        )
    corruption = CORRUPTIONS[name]
    drawn = corruption.draw(image.astype(np.float32) / 255, corruption.strengths[severity - 1], generator)
    return (255 * drawn.clip(0, 1)).round().astype(np.uint8)


def _gaussian_noise(image, deviation, generator):
    return image + deviation * generator.standard_normal(image.shape, np.float32)


def _shot_noise(image, photons, generator):
    return generator.poisson(image * photons).astype(np.float32) / photons


def _impulse_noise(image, share, generator):
    drawn = generator.random(image.shape, np.float32)
    return np.where(drawn < share / 2, 0, np.where(drawn < share, 1, image))


def _defocus_blur(image, radius, generator):
    radius = radius * _scale(image)
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # The rim counts by the share that the disc covers, so that radii need not be whole.
    disc = (radius + 0.5 - np.hypot(y, x)).clip(0, 1)
    return _filter(image, disc)


def _glass_blur(image, strength, generator):
    sigma, distance, repeats = strength
    sigma, distance = sigma * _scale(image), distance * _scale(image)
    image = _gaussian_blur(image, sigma)
    for _ in range(repeats):
        image = _displace(image, generator.uniform(-distance, distance, (2, *image.shape[:2])))
    return _gaussian_blur(image, sigma)


def _motion_blur(image, strength, generator):
    return _streak(image, *strength, generator.uniform(-45, 45))


def _zoom_blur(image, strength, generator):
    largest, step = strength
    factors = np.arange(1, largest, step)
    return (image + sum(_zoom(image, factor) for factor in factors)) / (len(factors) + 1)


def _snow(image, strength, generator):
    mean, deviation, zoom, threshold, radius, sigma, visible = strength
    flakes = _zoom(mean + deviation * generator.standard_normal(image.shape[:2], np.float32), zoom)
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    flakes = _streak(flakes, radius, sigma, generator.uniform(-135, -45))[..., None]
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]
    hazy = visible * image + (1 - visible) * np.maximum(image, 1.5 * grey + 0.5)
    return hazy + flakes + flakes[::-1, ::-1]


def _frost(image, strength, generator):
    visible, opacity = strength
    # Ridges of rough noise look like crystals, which leave holes of clear glass.
    crystals = 1 - np.abs(2 * _octaves(image.shape[:2], 1.3, generator) - 1)
    coverage = _octaves(image.shape[:2], 1.8, generator)
    ice = np.array([1.0, 0.96, 0.88], np.float32) * (crystals**3 * (0.3 + coverage))[..., None]
    return visible * image + opacity * ice


def _fog(image, strength, generator):
    amount, decay = strength
    haze = amount * _octaves(image.shape[:2], decay, generator)[..., None]
    brightest = image.max()
    return (image + haze) * brightest / (brightest + amount)


def _brightness(image, amount, generator):
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[..., 2] = (hsv[..., 2] + amount).clip(0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def _contrast(image, factor, generator):
    mean = image.mean((0, 1))
    return factor * (image - mean) + mean


def _elastic_transform(image, strength, generator):
    height, width = image.shape[:2]
    alpha, sigma, shift = (244 * share * _scale(image) for share in strength)
    middle, third = np.array([width, height]) / 2, min(height, width) / 3
    corners = (middle + third * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    moved = corners + generator.uniform(-shift, shift, (3, 2)).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    image = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    field = generator.uniform(-1, 1, (2, height, width)).astype(np.float32)
    return _displace(image, [alpha * _gaussian_blur(axis, sigma) for axis in field])


def _pixelate(image, factor, generator):
    height, width = image.shape[:2]
    small = max(1, int(width * factor)), max(1, int(height * factor))
    return cv2.resize(
        cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height), interpolation=cv2.INTER_NEAREST
    )


def _jpeg_compression(image, quality, generator):
    _, data = cv2.imencode('.jpg', (255 * image).round().astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR).astype(np.float32) / 255


CORRUPTIONS = dict(
    gaussian_noise=Corruption(_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), 'noise'),
    shot_noise=Corruption(_shot_noise, (60, 25, 12, 5, 3), 'noise'),
    impulse_noise=Corruption(_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), 'noise'),
    defocus_blur=Corruption(_defocus_blur, (3, 4, 6, 8, 10), 'blur'),
    glass_blur=Corruption(_glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)), 'blur'),
    motion_blur=Corruption(_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), 'blur'),
    zoom_blur=Corruption(_zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)), 'blur'),
    snow=Corruption(
        _snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        'weather',
    ),
    frost=Corruption(_frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)), 'weather'),
    fog=Corruption(_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), 'weather'),
    brightness=Corruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5), 'weather'),
    contrast=Corruption(_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), 'digital'),
    elastic_transform=Corruption(
        _elastic_transform,
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
        'digital',
    ),
    pixelate=Corruption(_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), 'digital'),
    jpeg_compression=Corruption(_jpeg_compression, (25, 18, 15, 10, 7), 'digital'),
)
"""All corruptions by name, family after family."""

ALEXNET_ERRORS = dict(
    gaussian_noise=0.886428,
    shot_noise=0.894468,
    impulse_noise=0.922640,
    defocus_blur=0.819880,
    glass_blur=0.826268,
    motion_blur=0.785948,
    zoom_blur=0.798360,
    snow=0.866816,
    frost=0.826572,
    fog=0.819324,
    brightness=0.564592,
    contrast=0.853204,
    elastic_transform=0.646056,
    pixelate=0.717840,
    jpeg_compression=0.606500,
)
"""Published mean errors of AlexNet over the severities, the unit of mCE (github.com/hendrycks/robustness)."""


def _scale(image):
    return min(image.shape[:2]) / _SIDE


def _filter(image, kernel):
    kernel = (kernel / kernel.sum()).astype(np.float32)
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def _gaussian_blur(image, sigma):
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)


def _displace(image, offsets):
    """Take every pixel from a place that lies (rows, columns) away."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    places = [(x + offsets[1]).astype(np.float32), (y + offsets[0]).astype(np.float32)]
    return cv2.remap(image, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _zoom(image, factor):
    matrix = cv2.getRotationMatrix2D(((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2), 0, factor)
    return cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101)


def _streak(image, radius, sigma, angle):
    """Smear to one side, as a moving camera does; the weight falls as a Gaussian."""
    radius, sigma = radius * _scale(image), sigma * _scale(image)
    reach = int(np.ceil(2 * radius))
    distances = np.linspace(0, 2 * radius, 4 * reach + 1)
    weights = np.exp(-(distances**2) / (2 * sigma**2))
    direction = np.deg2rad(angle)
    kernel = np.zeros((2 * reach + 3, 2 * reach + 3))
    y, x = (reach + 1 + distances * part for part in (np.sin(direction), np.cos(direction)))
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    for row, row_share in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, column_share in ((left, 1 - (x - left)), (left + 1, x - left)):
            np.add.at(kernel, (row, column), weights * row_share * column_share)
    return _filter(image, kernel)


def _octaves(size, decay, generator):
    """Cloudy noise in [0, 1]: every octave is twice as fine and ``decay ** 2`` times as weak."""
    noise = np.zeros(size, np.float32)
    for octave in range(1, int(np.ceil(np.log2(max(size)))) + 1):
        cells = generator.uniform(-1, 1, (2**octave + 1, 2**octave + 1)).astype(np.float32)
        noise += cv2.resize(cells, size[::-1], interpolation=cv2.INTER_CUBIC) / decay ** (2 * octave)
    return (noise - noise.min()) / (noise.max() - noise.min())
