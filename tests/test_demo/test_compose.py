"""Composing cut-outs on photos: masks against pixels, formulas against loops, the limits of a style."""

from dataclasses import replace

import numpy as np
import pytest

from mm_sop.demo import SCENE, Canvas, Cutout, Photo, Split, Style, compose
from mm_sop.demo.compose import (
    crop_photo,
    draw_clutter,
    draw_position,
    feather_edge,
    paint_object,
    paint_occluder,
    soften_background,
    warp_cutout,
)

RED, GREEN, BLUE = (1, 0, 0), (0, 1, 0), (0, 0, 1)
PLAIN = replace(SCENE, rotation=0.0, feather=(0.0, 0.0), distractors=(0, 0), occluder_probability=0.0)


def patch(width, height, color, alpha=1.0):
    return np.full((height, width, 4), (*color, 1), np.float32) * np.float32(alpha)


def black(width=40, height=30):
    return np.zeros((height, width, 3), np.float32)


def solid_cutout(name, color, width=60, height=40, mirror=True):
    image = np.full((height, width, 4), 255, np.uint8)
    image[..., :3] = np.array(color) * 255
    return Cutout(f'shapes/{name}', 'shapes', image, mirror)


@pytest.fixture
def split():
    """Three solid cut-outs in pure colors and one distractor on black photos."""
    cutouts = [solid_cutout('r', RED), solid_cutout('g', GREEN, 30, 60), solid_cutout('b', BLUE, 50, 50)]
    photos = [Photo(f'photo/{i}', np.zeros((200, 300, 3), np.uint8)) for i in range(2)]
    return Split(cutouts, [solid_cutout('d', (1, 1, 1))], photos)


class TestCanvas:
    def test_masks_agree_with_the_pixels(self):
        canvas = Canvas(black())
        canvas.paint(patch(20, 10, RED), (2, 3), is_object=True)
        canvas.paint(patch(15, 15, GREEN), (10, 5), is_object=True)
        canvas.paint(patch(4, 4, BLUE), (12, 8))
        image = canvas.to_uint8()
        for index, color in enumerate((RED, GREEN)):
            shown = (image == np.array(color) * 255).all(-1)
            assert (canvas.mask(index) == shown).all()
        assert canvas.areas == [200, 225]
        assert canvas.visible(0) == (200 - 12 * 8) / 200
        assert canvas.visible(1) == (225 - 16) / 225

    def test_blending_against_a_loop(self):
        rng = np.random.default_rng(0)
        background = rng.random((6, 7, 3)).astype(np.float32)
        alpha = rng.random((5, 5, 1))
        piece = np.concatenate([rng.random((5, 5, 3)) * alpha, alpha], -1).astype(np.float32)
        canvas = Canvas(background.copy())
        canvas.paint(piece, (4, -2), is_object=True)
        for y, x in np.ndindex(6, 7):
            expected = background[y, x].astype(np.float64)
            if 0 <= y + 2 < 5 and 0 <= x - 4 < 5:
                expected = expected * (1 - piece[y + 2, x - 4, 3]) + piece[y + 2, x - 4, :3]
                assert canvas.mask(0)[y, x] == (piece[y + 2, x - 4, 3] >= 0.5)
            else:
                assert not canvas.mask(0)[y, x]
            np.testing.assert_allclose(canvas.image[y, x], expected, atol=1e-6)

    @pytest.mark.parametrize('position', [(40, 0), (-20, 0), (0, 30), (0, -10), (100, 100), (-100, -100)])
    def test_painting_outside_changes_nothing(self, position):
        canvas = Canvas(black())
        assert not canvas.can_paint(patch(20, 10, RED), position, 0.0)
        canvas.paint(patch(20, 10, RED), position)
        assert not canvas.image.any()

    def test_can_paint_predicts_the_visible_fractions(self):
        rng = np.random.default_rng(1)
        canvas = Canvas(black())
        canvas.paint(patch(20, 10, RED), (2, 3), is_object=True)
        canvas.paint(patch(15, 15, GREEN), (15, 5), is_object=True)
        for _ in range(100):
            position, size = tuple(rng.integers(-5, 30, 2)), rng.integers(3, 20, 2)
            after = Canvas(canvas.image.copy())
            after.labels, after.areas = canvas.labels.copy(), list(canvas.areas)
            after.paint(patch(*size, BLUE), position)
            least = min(after.visible(0), after.visible(1))
            changed = (after.image != canvas.image).any()
            for limit in (0.3, 0.6, 0.9):
                assert canvas.can_paint(patch(*size, BLUE), position, limit) == (changed and least >= limit)


class TestWarp:
    @pytest.mark.parametrize('angle', [0, 7, -15, 90])
    @pytest.mark.parametrize('side', [9, 40, 150])
    def test_longer_side_is_exact(self, angle, side):
        assert max(warp_cutout(solid_cutout('x', RED).image, side, angle, False, 0.0).shape[:2]) == side

    def test_rotation_is_counter_clockwise(self):
        image = np.zeros((60, 60, 4), np.uint8)
        image[..., 3] = 255
        image[20:40, 40:, 0] = 255
        turned = warp_cutout(image, 60, 90, False, 0.0)
        assert turned[:15, 25:35, 0].min() == 1 and turned[25:, :, 0].max() == 0

    def test_mirroring(self):
        image = np.random.default_rng(0).integers(0, 256, (20, 30, 4)).astype(np.uint8)
        np.testing.assert_array_equal(
            warp_cutout(image, 30, 0, True, 0.0), warp_cutout(image, 30, 0, False, 0.0)[:, ::-1]
        )

    def test_scaling_makes_no_fringe(self):
        rng = np.random.default_rng(0)
        inside = rng.random((50, 50, 1)) < 0.5
        image = np.where(inside, np.array([200, 100, 40, 255]), 0).astype(np.uint8)
        small = warp_cutout(image, 20, 10, False, 0.5)
        shown = small[..., 3] > 0.2
        color = small[shown][:, :3] / small[shown][:, 3:]
        np.testing.assert_allclose(color, np.array([[200, 100, 40]] * shown.sum()) / 255, atol=0.03)

    def test_thin_objects_do_not_vanish(self):
        image = np.zeros((100, 100, 4), np.uint8)
        image[:, 49:51] = (200, 100, 50, 255)
        image[:2] = image[-2:] = (200, 100, 50, 255)
        thin = warp_cutout(image, 12, 10, False, 0.6)
        assert thin[..., 3].max() == 1
        y, x = np.unravel_index(thin[..., 3].argmax(), thin.shape[:2])
        np.testing.assert_allclose(thin[y, x, :3], np.array([200, 100, 50]) / 255, atol=0.03)

    def test_feathering_only_lowers_alpha_and_preserves_the_color(self):
        sharp = np.zeros((30, 30, 4), np.float32)
        sharp[5:25, 5:25] = (0.8, 0.4, 0.2, 1)
        soft = feather_edge(sharp, 0.6)
        assert (soft <= sharp + 1e-6).all()
        assert soft[15, 15, 3] == pytest.approx(1)
        assert 0.5 < soft[5, 15, 3] < 0.95
        np.testing.assert_allclose(soft[..., :3], soft[..., 3:] * sharp[15, 15, :3], atol=1e-6)
        np.testing.assert_allclose(feather_edge(sharp / 2, 0.6), soft / 2, atol=1e-6)


class TestBackground:
    def test_crops_are_windows_of_the_photo(self):
        rows, columns = np.mgrid[:120, :200]
        photo = np.dstack([rows, columns, np.zeros_like(rows)]).astype(np.uint8)
        for seed in range(30):
            window = crop_photo(photo, (64, 48), (0.3, 1.0), np.random.default_rng(seed)) * 255
            step_down, step_right = np.diff(window[..., 0], axis=0).mean(), np.diff(window[..., 1], axis=1).mean()
            assert 1 <= step_down <= 120 / 48 + 0.01
            assert abs(step_right) == pytest.approx(step_down, rel=0.05)
            assert window[..., 0].max() <= 119 and window[..., 1].max() <= 199

    def test_small_photos_are_enlarged(self):
        assert crop_photo(np.zeros((20, 30, 3), np.uint8), (64, 48), (0.5, 1), np.random.default_rng(0)).shape == (
            48,
            64,
            3,
        )

    def test_softening(self):
        rng = np.random.default_rng(0)
        image = rng.random((64, 64, 3)).astype(np.float32)
        style = replace(SCENE, background_contrast=(0.5, 0.5), background_brightness=(0.1, 0.1))
        result = soften_background(image, style, rng)
        mean = image.mean((0, 1))
        np.testing.assert_allclose(result, np.clip(mean + 0.5 * (image - mean) + 0.1, 0, 1), atol=1e-5)
        untouched = soften_background(image, SCENE, rng)
        np.testing.assert_allclose(untouched, image, atol=1e-6)
        blurred = soften_background(image, replace(SCENE, background_blur=(3, 3)), rng)
        assert blurred.std() < 0.2 * image.std()
        paler = soften_background(image, replace(SCENE, background_saturation=(0.25, 0.25)), rng)
        np.testing.assert_allclose(paler.mean(-1), image.mean(-1), atol=1e-5)
        np.testing.assert_allclose(np.ptp(paler, -1), 0.25 * np.ptp(image, -1), atol=1e-5)


class TestPlacement:
    def test_no_overhang_stays_inside_and_spread_reaches_the_border(self):
        rng = np.random.default_rng(0)
        piece = patch(20, 10, RED)
        corners = np.array([draw_position(piece, (60, 40), rng) for _ in range(500)])
        assert corners.min(0).tolist() == [0, 0]
        assert corners.max(0).tolist() == [40, 30]

    def test_spread_zero_centers(self):
        assert draw_position(patch(20, 10, RED), (60, 40), np.random.default_rng(0), spread=0.0) == (20, 15)

    def test_overhang_is_limited(self):
        rng = np.random.default_rng(0)
        corners = np.array([draw_position(patch(20, 10, RED), (60, 40), rng, 0.25) for _ in range(500)])
        assert corners.min(0).tolist() == [-5, -2]
        assert corners.max(0).tolist() == [45, 32]

    def test_objects_without_permission_are_never_mirrored(self):
        image = np.full((40, 60, 4), (255, 0, 0, 255), np.uint8)
        image[:, 30:] = (0, 0, 255, 255)
        seen = {True: set(), False: set()}
        for mirror in seen:
            for seed in range(30):
                canvas = Canvas(black(64, 64))
                paint_object(canvas, Cutout('a/b', 'a', image, mirror), PLAIN, np.random.default_rng(seed))
                red, blue = (np.nonzero(canvas.image[..., channel].any(0))[0].mean() for channel in (0, 2))
                seen[mirror].add(red < blue)
        assert seen == {True: {True, False}, False: {True}}

    def test_an_occluder_lies_on_its_object_and_leaves_enough(self, split):
        style = replace(PLAIN, occluder_scale=(0.3, 0.8), min_visible=0.5)
        painted = 0
        for seed in range(40):
            canvas = Canvas(black(64, 64))
            rng = np.random.default_rng(seed)
            paint_object(canvas, split.cutouts[0], style, rng)
            painted += paint_occluder(canvas, 0, split, style, rng)
            assert canvas.visible(0) >= 0.5
        assert painted > 20

    def test_clutter_without_distractors_is_textured(self, split):
        white = [Photo('photo/w', np.full((100, 100, 3), 255, np.uint8))]
        for seed in range(10):
            piece = draw_clutter(Split([], [], white), 20, PLAIN, np.random.default_rng(seed))
            assert max(piece.shape[:2]) == 20
            np.testing.assert_allclose(piece[..., :3], piece[..., 3:].repeat(3, -1), atol=1e-5)


class TestCompose:
    def test_masks_agree_with_the_pixels(self, split):
        style = replace(PLAIN, occluder_probability=1.0)
        several = 0
        for seed in range(40):
            canvas, placed = compose(split.cutouts, split, style, (80, 64), np.random.default_rng(seed))
            image = canvas.to_uint8()
            several += len(placed) > 1
            for index, cutout in enumerate(placed):
                # Clutter has soft edges: a pixel belongs to the object with more than half of its color.
                shown = ((image > 127) == (cutout.image[0, 0, :3] > 127)).all(-1)
                assert shown.any()
                assert (canvas.mask(index) == shown).all()
        assert several > 20

    def test_the_visible_fraction_and_the_scale_respect_the_style(self, split):
        style = replace(SCENE, object_scale=(0.4, 0.6), overhang=0.0, distractors=(2, 3))
        for seed in range(40):
            canvas, placed = compose(split.cutouts, split, style, (80, 64), np.random.default_rng(seed))
            for index in range(len(placed)):
                assert canvas.visible(index) >= style.min_visible
        for seed in range(40):
            canvas, placed = compose(split.cutouts[:1], split, PLAIN, (80, 64), np.random.default_rng(seed))
            assert canvas.areas[0] <= (0.8 * 64 + 1) ** 2

    def test_the_generator_decides_everything(self, split):
        first, again, other = (
            compose(split.cutouts, split, SCENE, (80, 64), np.random.default_rng(seed))[0] for seed in (5, 5, 6)
        )
        np.testing.assert_array_equal(first.image, again.image)
        np.testing.assert_array_equal(first.labels, again.labels)
        assert (first.image != other.image).any()

    def test_a_given_background_is_not_changed(self, split):
        background = np.full((48, 48, 3), 0.5, np.float32)
        canvas, _ = compose(split.cutouts[:1], split, PLAIN, (48, 48), np.random.default_rng(0), background)
        assert (background == 0.5).all()
        assert (canvas.image[~canvas.mask(0)] == 0.5).all()


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('object_scale', (0.0, 0.5)),
        ('object_scale', (0.5, 1.5)),
        ('object_scale', (0.8, 0.5)),
        ('background_crop', (0.1, 1.1)),
        ('background_brightness', (-2, 0)),
        ('background_blur', (-1, 0)),
        ('background_saturation', (-0.1, 1)),
        ('distractors', (-1, 2)),
        ('objects', (0, 2)),
        ('occluder_scale', (0.0, 0.5)),
        ('rotation', -1.0),
        ('min_visible', 1.5),
        ('spread', -0.1),
        ('occluder_probability', 2.0),
    ],
)
def test_bad_styles_are_refused(name, value):
    with pytest.raises(ValueError, match=f'Style.{name}'):
        Style(**{name: value})
