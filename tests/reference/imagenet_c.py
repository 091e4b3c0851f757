"""ImageNet-C's corruptions of images of 224 pixels, written out as they are published: slowly, point by point.

All take a BGR image, uint8, (224, 224, 3), the published strength and a generator, and give levels 0 ... 255 before
they are rounded. The order of the channels matters to none of them but brightness and snow, which look at colors. Frost
is left out: it needs photos. Numbers come out of the generator in the order in which
:mod:`mm_sop.datasets.transforms.corruptions` draws them, so that both can be compared pixel by pixel.
"""

import io
import math

import cv2
import numpy as np
import skimage
from PIL import Image
from scipy import ndimage


def gaussian_noise(image, std, generator):
    return 255 * (image / 255 + std * generator.standard_normal(image.shape, np.float32))


def shot_noise(image, photons, generator):
    return 255 * generator.poisson(image / np.float32(255) * photons) / photons


def impulse_noise(image, share, generator):
    drawn = generator.random(image.shape, np.float32)
    levels = image.astype(float)
    for index in zip(*np.nonzero(drawn < share), strict=True):
        levels[index] = 0 if drawn[index] < share / 2 else 255
    return levels


def defocus_blur(image, radius, generator):
    alias = 0.1 if radius == 3 else 0.5
    reach = max(8, radius)
    disc = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for row in range(-reach, reach + 1):
        for column in range(-reach, reach + 1):
            disc[reach + row, reach + column] = row**2 + column**2 <= radius**2
    side = 3 if radius <= 8 else 5
    kernel = cv2.GaussianBlur(disc / disc.sum(), (side, side), alias)
    return 255 * cv2.filter2D(image / 255, -1, kernel)


def glass_blur(image, strength, generator):
    sigma, distance, repeats = strength
    smooth = skimage.filters.gaussian(image / 255, sigma, channel_axis=-1)
    levels = np.uint8(smooth * 255)
    for _ in range(repeats):
        reach = np.floor(distance + generator.random((224, 224)))
        offsets = np.floor(reach * generator.uniform(-1, 1, (2, 224, 224))).astype(int)
        for row in range(224 - distance, distance, -1):
            for column in range(224 - distance, distance, -1):
                down, right = offsets[:, row, column]
                # Exchanged in the published code, where the second of two views has changed before it is read.
                levels[row, column] = levels[row + down, column + right]
    return 255 * skimage.filters.gaussian(levels / 255, sigma, channel_axis=-1)


def motion_blur(image, strength, generator):
    radius, sigma = strength
    return _magick_motion_blur(image.astype(float), radius, sigma, generator.uniform(-45, 45))


def _magick_motion_blur(image, radius, sigma, angle):
    weights = [math.exp(-(step**2) / (2 * sigma**2)) for step in range(2 * radius + 1)]
    total = np.zeros(image.shape)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    for step, weight in enumerate(weights):
        down = math.ceil(step * math.sin(math.radians(angle)) - 0.5)
        right = math.ceil(step * math.cos(math.radians(angle)) - 0.5)
        places = (rows + down).clip(0, image.shape[0] - 1), (columns + right).clip(0, image.shape[1] - 1)
        total += weight / sum(weights) * image[places]
    return total


def _clipped_zoom(image, factor):
    kept = math.ceil(224 / factor)
    start = (224 - kept) // 2
    part = image[start : start + kept, start : start + kept]
    enlarged = ndimage.zoom(part, (factor, factor, 1), order=1)
    cut = (len(enlarged) - 224) // 2
    return enlarged[cut : cut + 224, cut : cut + 224]


def zoom_blur(image, strength, generator):
    factors = np.arange(1, *strength)
    return (image + sum(_clipped_zoom(image.astype(float), factor) for factor in factors)) / (len(factors) + 1)


def snow(image, strength, generator):
    mean, std, zoom, threshold, radius, sigma, visible = strength
    layer = mean + std * generator.standard_normal((224, 224), np.float32)
    layer = _clipped_zoom(layer[..., None], zoom)[..., 0]
    layer = np.uint8(np.where(layer < threshold, 0, layer).clip(0, 1) * 255)
    layer = _magick_motion_blur(layer, radius, sigma, generator.uniform(-135, -45))[..., None]
    blue, green, red = (image[..., channel] for channel in range(3))
    gray = (0.299 * red + 0.587 * green + 0.114 * blue)[..., None]
    hazy = visible * image + (1 - visible) * np.maximum(image, 1.5 * gray + 127.5)
    return hazy + layer + np.rot90(layer, 2)


def fog(image, strength, generator):
    amount, decay = strength
    highest = image.max() / 255
    haze = amount * _plasma(decay, generator)[:224, :224, None]
    return 255 * (image / 255 + haze) * highest / (highest + amount)


def _plasma(decay, generator, side=256):
    """Diamond-square: every point is the mean of its four neighbors plus noise of 100 * U(-100, 100)."""
    heights, step, wibble = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half, drawn = step // 2, generator.uniform(-1, 1, (3, side // step, side // step))
        diagonal = [(-half, -half), (-half, half), (half, -half), (half, half)]
        straight = [(-half, 0), (half, 0), (0, -half), (0, half)]
        for noise, (first, second), neighbors in zip(
            drawn, [(half, half), (0, half), (half, 0)], [diagonal, straight, straight], strict=True
        ):
            for i, j in np.ndindex(noise.shape):
                row, column = i * step + first, j * step + second
                mean = sum(heights[(row + down) % side, (column + right) % side] for down, right in neighbors) / 4
                heights[row, column] = mean + wibble * wibble * noise[i, j]
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return heights / heights.max()


def brightness(image, amount, generator):
    hsv = skimage.color.rgb2hsv(image[..., ::-1] / 255)
    hsv[..., 2] = (hsv[..., 2] + amount).clip(0, 1)
    return 255 * skimage.color.hsv2rgb(hsv)[..., ::-1]


def contrast(image, factor, generator):
    means = image.mean((0, 1))
    return (image - means) * factor + means


def elastic_transform(image, strength, generator):
    alpha, sigma, shift = (244 * share for share in strength)
    square = 224 // 3
    points = np.float32([[112 + square, 112 + square], [112 + square, 112 - square], [112 - square, 112 - square]])
    matrix = cv2.getAffineTransform(points, points + generator.uniform(-shift, shift, (3, 2)).astype(np.float32))
    moved = cv2.warpAffine(np.float32(image), matrix, (224, 224), borderMode=cv2.BORDER_REFLECT_101)
    down, right = (
        alpha * skimage.filters.gaussian(axis, sigma, mode='reflect', truncate=3)
        for axis in generator.uniform(-1, 1, (2, 224, 224))
    )
    rows, columns = np.mgrid[:224, :224]
    channels = [
        ndimage.map_coordinates(moved[..., channel], [rows + down, columns + right], order=1, mode='reflect')
        for channel in range(3)
    ]
    return np.stack(channels, -1)


def pixelate(image, factor, generator):
    small = Image.fromarray(image).resize((int(224 * factor),) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((224, 224), Image.Resampling.BOX))


def jpeg_compression(image, quality, generator):
    file = io.BytesIO()
    Image.fromarray(image[..., ::-1]).save(file, 'JPEG', quality=quality)
    return np.asarray(Image.open(file))[..., ::-1]
