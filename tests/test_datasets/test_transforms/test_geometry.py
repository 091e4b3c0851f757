import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from testing.sample_images import smooth_image

from mm_sop.datasets.transforms.geometry import resize_bicubic


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
