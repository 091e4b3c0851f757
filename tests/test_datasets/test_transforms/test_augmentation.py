import colorsys

import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from testing.sample_images import smooth_image

from mm_sop.datasets.transforms.augmentation import change_colors, resize_bicubic

LUMA = np.array([0.114, 0.587, 0.299])  # of blue, green and red


@pytest.fixture
def image():
    return np.asarray(smooth_image((32, 24)))[..., ::-1].copy()


@pytest.mark.parametrize('factor', [0.0, 0.6, 1.0, 1.4])
def test_factors_follow_their_formulas(image, factor):
    exact = image.astype(np.float64)
    gray = exact @ LUMA
    expected = [
        factor * exact,
        factor * exact + (1 - factor) * gray.mean(),
        factor * exact + (1 - factor) * gray[..., None],
    ]
    for operation, values in enumerate(expected):
        changed = change_colors(image, [operation], [factor] * 4)
        assert np.abs(changed - np.clip(values, 0, 255)).max() <= 1.5


@pytest.mark.parametrize('shift', [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue_turns_the_color_circle(shift):
    for color in np.random.default_rng(0).integers(0, 256, (200, 3), dtype=np.uint8):
        hue, saturation, value = colorsys.rgb_to_hsv(*(color[::-1] / 255))
        expected = np.array(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value))[::-1] * 255
        # Hue, saturation and value have 8 bits each, a step of 1 / 256 in hue is up to 6 gray levels.
        assert np.abs(change_colors(color[None, None], [3], [1, 1, 1, shift])[0, 0] - expected).max() <= 12


def test_jitter_draws_and_looks_like_the_stock_transform(image):
    settings = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    fast = TRANSFORMS.build(dict(type='FastColorJitter', **settings))
    stock = TRANSFORMS.build(dict(type='ColorJitter', backend='cv2', **settings))
    for seed in range(50):
        np.random.seed(seed)
        expected = stock(dict(img=image))['img'].astype(int)
        np.random.seed(seed)
        jittered = fast(dict(img=image))['img']
        assert jittered.dtype == np.uint8
        assert np.abs(jittered - expected).max() <= 4


def test_jitter_leaves_the_source_alone_and_applies_only_what_is_asked_for(image):
    source = image.copy()
    TRANSFORMS.build(dict(type='FastColorJitter', brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1))(
        dict(img=image)
    )
    assert np.array_equal(image, source)
    brighter = TRANSFORMS.build(dict(type='FastColorJitter', brightness=(1.5, 1.5)))(dict(img=image))['img']
    assert np.array_equal(brighter, change_colors(source, [0], [1.5]))
    assert np.array_equal(TRANSFORMS.build(dict(type='FastColorJitter'))(dict(img=image))['img'], source)


@pytest.mark.parametrize('shape', [(24, 32), (24, 32, 1)])
def test_jitter_of_gray_images_changes_brightness_and_contrast_alone(shape):
    """As that of a color image of three equal channels, with the same draws."""
    gray = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    settings = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    jitter = TRANSFORMS.build(dict(type='FastColorJitter', **settings))
    for seed in range(20):
        results = []
        for image in (gray, np.dstack([gray] * 3)):
            np.random.seed(seed)
            results.append(jitter(dict(img=image))['img'].astype(int))
        assert results[0].shape == shape
        assert np.abs(results[0].reshape(24, 32, 1) - results[1]).max() <= 2


@pytest.mark.parametrize('size', [(224, 224), (96, 96), (48, 48), (20, 31), (75, 60)])
def test_resizing_is_that_of_pillow(size):
    image = np.asarray(smooth_image((75, 60))).astype(int)
    image = np.clip(image + np.random.default_rng(0).integers(-40, 40, image.shape), 0, 255).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    resized = resize_bicubic(image, size)
    assert resized.dtype == np.uint8
    assert resized.flags.c_contiguous
    difference = np.abs(resized - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.3


@pytest.mark.parametrize('scale', [32, (20, 40)])
def test_crops_as_the_stock_transform_with_the_pillow_backend(scale):
    image = np.array(smooth_image((120, 90)))
    settings = dict(scale=scale, crop_ratio_range=(0.1, 0.9))
    fast = TRANSFORMS.build(dict(type='FastRandomResizedCrop', **settings))
    stock = TRANSFORMS.build(dict(type='RandomResizedCrop', interpolation='bicubic', backend='pillow', **settings))
    for seed in range(20):
        np.random.seed(seed)
        expected = stock(dict(img=image))
        np.random.seed(seed)
        results = fast(dict(img=image))
        assert np.abs(results['img'].astype(int) - expected['img']).max() <= 2
        assert results['img_shape'] == expected['img_shape'][:2]


def test_gray_images_keep_their_channel_axis():
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    assert np.array_equal(resize_bicubic(gray, (8, 8)), gray)
    assert resize_bicubic(gray, (4, 3)).shape == (4, 3, 1)
