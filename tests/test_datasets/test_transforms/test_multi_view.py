"""Views whose augmentation is drawn first, against MMPretrain's, which applies it as it is drawn."""

import random

import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS
from testing.sample_images import smooth_image

from mm_sop.datasets.transforms.multi_view import Augmentation

FLIP = dict(type='RandomFlip', prob=0.5)
COLORS = dict(type='FastColorJitter', brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
JITTER = dict(type='RandomApply', prob=0.8, transforms=[COLORS])
GRAY = dict(type='RandomGrayscale', prob=0.3, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989))
BLUR = dict(type='GaussianBlur', magnitude_range=(0.1, 2.0), magnitude_std='inf', prob=0.5)
SOLARIZE = dict(type='Solarize', thr=128, prob=0.3)
CROP = dict(type='FastRandomResizedCrop', scale=40, crop_ratio_range=(0.3, 1.0))


@pytest.fixture
def image():
    return np.asarray(smooth_image((64, 56)))[..., ::-1].copy()


def views_of(config, image, seed):
    np.random.seed(seed)
    random.seed(seed)
    results = TRANSFORMS.build(config)(dict(img=image))
    return results['img'], (np.random.random(), random.random())


def compare(image, *pipelines, seeds=40):
    """Largest and mean difference from MMPretrain's views, whose draws are the same."""
    errors = []
    for seed in range(seeds):
        config = dict(type='MultiView', num_views=[2] * len(pipelines), transforms=list(pipelines))
        expected, next_draws = views_of(config, image.copy(), seed)
        views, draws = views_of(dict(config, type='FastMultiView'), image, seed)
        assert draws == next_draws
        for view, stock in zip(views, expected, strict=True):
            assert view.shape == stock.shape
            assert view.dtype == stock.dtype
            errors.append(np.abs(view.astype(int) - stock))
    return max(error.max() for error in errors), np.mean([error.mean() for error in errors])


@pytest.mark.parametrize(
    'pipeline',
    [
        [CROP, FLIP, JITTER],
        [CROP, JITTER, dict(SOLARIZE, thr=100), FLIP],
        [FLIP],
        [JITTER, FLIP, dict(SOLARIZE, thr=None, magnitude_range=(0, 256), magnitude_std='inf')],
    ],
)
def test_views_are_those_of_mmpretrain(image, pipeline):
    source = image.copy()
    assert compare(image, pipeline) == (0, 0)
    assert np.array_equal(image, source)


def test_gray_is_rounded(image):
    worst, mean = compare(image, [CROP, JITTER, GRAY, SOLARIZE, FLIP], [CROP, GRAY])
    assert worst == 1
    assert mean < 0.2


def test_blur_is_gaussian_instead_of_boxes(image):
    worst, mean = compare(image, [CROP, FLIP, JITTER, GRAY, BLUR, SOLARIZE], [CROP, BLUR])
    assert worst <= 16
    assert mean < 1


@pytest.mark.parametrize('sigma', [0.1, 0.5, 1.0, 2.0])
def test_blur_is_the_weighted_sum_of_neighbors(image, sigma):
    radius = max(1, round(6 * sigma + 1) // 2)
    offsets = range(-radius, radius + 1)
    weights = {offset: np.exp(-0.5 * (offset / sigma) ** 2) for offset in offsets}
    expected = np.pad(image.astype(float), ((radius, radius), (radius, radius), (0, 0)), mode='reflect')
    for axis in (0, 1):
        expected = sum(np.roll(expected, -offset, axis) * weight for offset, weight in weights.items())
        expected = expected / sum(weights.values())
    expected = expected[radius:-radius, radius:-radius]
    assert np.abs(Augmentation(blur_sigma=sigma).apply(image) - expected).max() <= 1.5


@pytest.mark.parametrize(
    'pipeline',
    [
        [CROP, BLUR, JITTER],  # not the order of an augmentation
        [CROP, JITTER, JITTER],
        [JITTER, dict(type='RandomFlip', prob=0.5, direction='vertical')],
        [JITTER, dict(GRAY, channel_weights=(1, 1, 1))],
        [dict(BLUR, magnitude_range=(0.1, 9.0)), FLIP],
        [BLUR, CROP],
        [dict(type='Resize', scale=30), BLUR, dict(type='Posterize', bits=4)],
        [],
    ],
)
def test_what_an_augmentation_cannot_express_runs_as_it_is(image, pipeline):
    assert compare(image, pipeline, seeds=10) == (0, 0)


@pytest.mark.parametrize('shape', [(56, 64), (56, 64, 1)])
def test_gray_images(shape):
    gray = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    pipeline = [CROP, FLIP, JITTER, GRAY, SOLARIZE]
    assert compare(gray, pipeline) == (0, 0)
    views, _ = views_of(
        dict(type='FastMultiView', num_views=2, transforms=[[*pipeline[:-1], dict(BLUR, prob=1.0)]]), gray, 0
    )
    assert views[0].shape == (40, 40, *shape[2:])


def test_unknown_place_is_refused():
    with pytest.raises(ValueError, match="augment_on='gpu' of FastMultiView: expected 'host' or 'device'"):
        TRANSFORMS.build(dict(type='FastMultiView', num_views=1, transforms=[[]], augment_on='gpu'))
