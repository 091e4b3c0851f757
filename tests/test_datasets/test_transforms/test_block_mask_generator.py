import math

import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS

import mm_sop  # noqa: F401


def build(**settings):
    return TRANSFORMS.build(dict(type='BlockMaskGenerator', **settings))


def draw_mask_by_loops(ratios, jitters, log_aspect, grid):
    """iBOT's procedure patch by patch, fed with the draws of the generator under test."""
    height, width = grid
    draws = np.random.random(len(ratios) + 1)
    jittered = [ratio - jitter + 2 * jitter * draw for ratio, jitter, draw in zip(ratios, jitters, draws, strict=False)]
    target = jittered[int(draws[-1] * len(ratios))] * height * width
    mask = [[False] * width for _ in range(height)]
    count = 0
    while count < target:
        remaining = target - count
        new = 0
        for draws in np.random.random((10, 4)):
            low = (min(height, width) // 3) ** 2
            area = low + (remaining - low) * draws[0]
            aspect = math.exp(log_aspect[0] + (log_aspect[1] - log_aspect[0]) * draws[1])
            h = int(round(math.sqrt(area * aspect)))
            w = int(round(math.sqrt(area / aspect)))
            if w < width and h < height:
                top = math.floor(draws[2] * (height - h + 1))
                left = math.floor(draws[3] * (width - w + 1))
                cells = [(i, j) for i in range(top, top + h) for j in range(left, left + w) if not mask[i][j]]
                if 0 < len(cells) <= remaining:
                    for i, j in cells:
                        mask[i][j] = True
                    new = len(cells)
                    break
        if new == 0:
            break
        count += new
    return mask


@pytest.mark.parametrize('grid', [(14, 14), (6, 6), (3, 3), (7, 12), (37, 37)])
@pytest.mark.parametrize(
    ('ratios', 'jitters'), [((0.0, 0.3), (0.0, 0.2)), ((0.3,), (0.0,)), ((0.6, 0.1, 0.4), (0.3, 0.05, 0.0))]
)
def test_equals_loops_fed_with_the_same_draws(grid, ratios, jitters):
    generator = build(mask_ratio=ratios, mask_ratio_jitter=jitters, grid=grid)
    log_aspect = math.log(0.3), math.log(1 / 0.3)
    for seed in range(30):
        np.random.seed(seed)
        expected = [draw_mask_by_loops(ratios, jitters, log_aspect, grid) for _ in range(2)]
        np.random.seed(seed)
        mask = generator({})['mask']
        assert mask.dtype == bool
        assert mask.shape == (2, *grid)
        assert mask.tolist() == expected


def test_ibot_recipe_leaves_half_of_the_masks_empty_and_jitters_the_others():
    masks = np.concatenate([build()({})['mask'] for _ in range(3000)])
    share = masks.mean((1, 2))
    assert share.max() <= 0.5
    # 6000 masks: the standard error of the fraction of empty ones is 0.0065.
    assert (share == 0).mean() == pytest.approx(0.5, abs=0.03)
    filled = share[share > 0]
    # U(0.1, 0.5) has mean 0.3 and standard deviation 0.115; the last patches are not always found.
    assert 0.27 < filled.mean() <= 0.305
    assert filled.std() == pytest.approx(0.115, abs=0.015)


def test_released_ratio_is_never_exceeded():
    counts = build(mask_ratio=0.3, mask_ratio_jitter=0.0, num_views=2000)({})['mask'].sum((1, 2))
    assert counts.max() == 58  # 0.3 * 196 = 58.8
    assert counts.mean() > 0.27 * 196


def test_masks_reach_every_border_and_are_symmetric_on_average():
    frequency = build(mask_ratio=0.3, mask_ratio_jitter=0.0, num_views=8000)({})['mask'].mean(0)
    mirrored = [frequency[::-1], frequency[:, ::-1], frequency.T]
    assert frequency.min() > 0.02
    # Binomial standard error of a difference: 0.007.
    assert max(np.abs(frequency - other).max() for other in mirrored) < 0.03


def test_random_shape_masks_exactly_the_rounded_down_target():
    generator = build(mask_ratio=0.3, mask_ratio_jitter=0.0, shape='random', num_views=500)
    masks = generator({})['mask']
    assert (masks.sum((1, 2)) == 58).all()
    assert np.abs(masks.mean(0) - 58 / 196).max() < 0.1


@pytest.mark.parametrize('ratio', [0.0, 1.0])
def test_extreme_ratios(ratio):
    masks = build(mask_ratio=ratio, mask_ratio_jitter=0.0, num_views=50)({})['mask']
    assert masks.mean() == 0 if ratio == 0 else masks.mean() > 0.9


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(mask_ratio=(0.3, 0.1)), 'leaves the range'),
        (dict(mask_ratio=0.9, mask_ratio_jitter=0.2), 'leaves the range'),
        (dict(mask_ratio=(0.3, 0.2), mask_ratio_jitter=0.0), 'one jitter for each ratio'),
        (dict(aspect=(3.0, 0.3)), 'smaller first'),
        (dict(grid=(14,)), 'grid'),
        (dict(num_views=0), 'num_views=0'),
        (dict(shape='circle'), "shape='circle'"),
    ],
)
def test_rejects_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)
