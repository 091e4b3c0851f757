import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from sample_pictures import smooth_picture

from mm_sop.datasets.transforms import TrimLongSide
from mm_sop.evaluation.protocol import EvaluationTransform


def trimmed(shape, ratio=8):
    picture = np.arange(np.prod(shape)).reshape(*shape, 1).repeat(3, 2)
    results = TrimLongSide(ratio).transform(dict(img=picture))
    assert results['img_shape'] == results['img'].shape[:2]
    return picture, results['img']


@pytest.mark.parametrize('shape, kept', [((1, 100), (1, 8)), ((101, 2), (17, 2)), ((3, 25), (3, 25)), ((9, 9), (9, 9))])
def test_the_middle_remains(shape, kept):
    picture, found = trimmed(shape)
    assert found.shape[:2] == kept
    top, left = ((whole - part) // 2 for whole, part in zip(shape, kept, strict=True))
    assert np.array_equal(found, picture[top : top + kept[0], left : left + kept[1]])


@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear', 'lanczos', 'area'])
@pytest.mark.parametrize('size', [(900, 30), (40, 1200), (500, 11)])
def test_crops_are_those_of_the_whole_picture(interpolation, size):
    init_default_scope('mmpretrain')
    transform = EvaluationTransform(24, 28, interpolation)
    picture = np.asarray(smooth_picture(size=size, seed=3))
    whole = [step for step in transform.array_steps if step['type'] != 'TrimLongSide']
    found, expected = (Compose(steps)(dict(img=picture))['inputs'].float() for steps in (transform.array_steps, whole))
    assert found.shape == (3, 24, 24)
    # The whole picture is enlarged to a whole number of pixels, and its crop begins at one.
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
