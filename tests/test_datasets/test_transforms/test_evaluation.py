import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from testing.sample_images import smooth_image

from mm_sop.datasets.transforms import EvaluationTransform, FitWithin, TrimLongSide

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)


def trimmed(shape, ratio=8):
    image = np.arange(np.prod(shape)).reshape(*shape, 1).repeat(3, 2)
    results = TrimLongSide(ratio).transform(dict(img=image))
    assert results['img_shape'] == results['img'].shape[:2]
    return image, results['img']


@pytest.mark.parametrize('shape, kept', [((1, 100), (1, 8)), ((101, 2), (17, 2)), ((3, 25), (3, 25)), ((9, 9), (9, 9))])
def test_the_center_remains(shape, kept):
    image, found = trimmed(shape)
    assert found.shape[:2] == kept
    top, left = ((whole - part) // 2 for whole, part in zip(shape, kept, strict=True))
    assert np.array_equal(found, image[top : top + kept[0], left : left + kept[1]])


@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear', 'lanczos', 'area'])
@pytest.mark.parametrize('size', [(900, 30), (40, 1200), (500, 11)])
def test_crops_are_those_of_the_whole_image(interpolation, size):
    init_default_scope('mmpretrain')
    transform = EvaluationTransform(24, 28, interpolation)
    image = np.asarray(smooth_image(size=size, seed=3))
    whole = [step for step in transform.array_steps if step['type'] != 'TrimLongSide']
    found, expected = (Compose(steps)(dict(img=image))['inputs'].float() for steps in (transform.array_steps, whole))
    assert found.shape == (3, 24, 24)
    # The whole image is enlarged to a whole number of pixels, and its crop begins at one.
    assert (found - expected).abs().mean() < 1.5


@pytest.mark.parametrize('size', [(60_000, 1), (1, 60_000)])
def test_strips_are_cheap(size, monkeypatch):
    init_default_scope('mmpretrain')
    shown = []
    monkeypatch.setattr(
        'mmcv.imresize', lambda image, scale, **options: shown.append((image.shape, scale)) or (image, 1, 1)
    )
    Compose(EvaluationTransform(224).array_steps)(dict(img=np.zeros((*size, 3), np.uint8)))
    ((_, scale),) = shown
    assert max(scale) == 8 * min(scale) == 8 * 256


def test_small_ratios_are_refused():
    with pytest.raises(ValueError, match=r'TrimLongSide\(ratio=4\)'):
        TrimLongSide(4)


def fit(max_side, **sample):
    return FitWithin(max_side).transform(dict(img=IMAGE, **sample))['img']


def test_only_larger_images_are_shrunk():
    assert fit(50).shape == (30, 50, 3)
    assert np.array_equal(fit(100), IMAGE) and np.array_equal(fit(512), IMAGE)
    assert abs(fit(10).astype(float).mean() - IMAGE.mean()) < 2


def test_boxes_are_shown_at_the_scale_of_their_image():
    box = (10.2, 5.0, 50.0, 25.4)
    assert np.array_equal(fit(100, box=box), IMAGE[5:25, 10:50])
    assert fit(50, box=box).shape == (10, 20, 3)
    assert fit(100, box=(-5, -5, 20, 500)).shape == (60, 20, 3)


def test_bad_boxes_and_sizes_are_refused():
    with pytest.raises(ValueError, match='max_side=0'):
        FitWithin(0)
    with pytest.raises(ValueError, match=r'box \(10, 10, 10, 30\) of a.jpg has no pixel in an image of 100 x 60'):
        fit(50, box=(10, 10, 10, 30), img_path='a.jpg')
