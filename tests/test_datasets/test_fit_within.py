import numpy as np
import pytest

from mm_sop.datasets.transforms.fit_within import FitWithin

PICTURE = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)


def fit(max_side, **sample):
    return FitWithin(max_side).transform(dict(img=PICTURE, **sample))['img']


def test_only_larger_pictures_are_shrunk():
    assert fit(50).shape == (30, 50, 3)
    assert np.array_equal(fit(100), PICTURE) and np.array_equal(fit(512), PICTURE)
    assert abs(fit(10).astype(float).mean() - PICTURE.mean()) < 2


def test_boxes_are_shown_at_the_scale_of_their_picture():
    box = (10.2, 5.0, 50.0, 25.4)
    assert np.array_equal(fit(100, box=box), PICTURE[5:25, 10:50])
    assert fit(50, box=box).shape == (10, 20, 3)
    assert fit(100, box=(-5, -5, 20, 500)).shape == (60, 20, 3)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match='max_side=0'):
        FitWithin(0)
    with pytest.raises(ValueError, match=r'box \(10, 10, 10, 30\) of a.jpg has no pixel in a picture of 100 x 60'):
        fit(50, box=(10, 10, 10, 30), img_path='a.jpg')
