import cv2
import numpy as np
import pytest
import skimage
from mmpretrain.registry import TRANSFORMS
from reference import imagenet_c
from testing.sample_images import smooth_image

from mm_sop.datasets.transforms.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from mm_sop.datasets.transforms.perturb import Perturb, image_generator, occlude_patches, shuffle_patches


@pytest.fixture(scope='module')
def image():
    """A smooth image with edges, 64 pixels wide and 56 high."""
    pixels = np.asarray(smooth_image((64, 56), 3)).copy()
    pixels[16:40, 20:36] = (30, 200, 120)
    return pixels


def draw(image, name, severity, seed=0):
    return corrupt(image, name, severity, np.random.default_rng(seed))


def difference(first, second):
    return np.abs(first.astype(float) - second).mean()


def test_fifteen_corruptions_in_four_families():
    families = [corruption.family for corruption in CORRUPTIONS.values()]
    assert {family: families.count(family) for family in families} == dict(noise=3, blur=4, weather=4, digital=4)
    assert all(len(corruption.strengths) == 5 for corruption in CORRUPTIONS.values())


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_corruptions_keep_the_form_and_repeat(image, name):
    before = image.copy()
    for severity in SEVERITIES:
        result = draw(image, name, severity)
        assert result.shape == image.shape and result.dtype == np.uint8
        assert np.array_equal(result, draw(image, name, severity))
        assert difference(result, image) > 0.2
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    'name', sorted(set(CORRUPTIONS) - {'elastic_transform', 'snow', 'frost', 'fog', 'glass_blur', 'pixelate'})
)
def test_higher_severities_change_more(image, name):
    changes = [difference(draw(image, name, severity), image) for severity in SEVERITIES]
    assert changes == sorted(changes)


def gray(level=128, side=96):
    return np.full((side, side, 3), level, np.uint8)


@pytest.mark.parametrize('severity', SEVERITIES)
def test_noise_has_the_published_strength(severity):
    noisy = draw(gray(), 'gaussian_noise', severity) / 255
    unclipped = 128 / 255 + CORRUPTIONS['gaussian_noise'].strengths[severity - 1] * np.random.default_rng(1).normal(
        size=200_000
    )
    assert noisy.std() == pytest.approx(unclipped.clip(0, 1).std(), rel=0.03)
    photons = CORRUPTIONS['shot_noise'].strengths[severity - 1]
    expected = (np.random.default_rng(1).poisson(128 / 255 * photons, 200_000) / photons).clip(0, 1)
    assert (draw(gray(), 'shot_noise', severity) / 255).std() == pytest.approx(expected.std(), rel=0.03)
    speckled = draw(gray(), 'impulse_noise', severity)
    share = CORRUPTIONS['impulse_noise'].strengths[severity - 1]
    assert (speckled == 0).mean() == pytest.approx(share / 2, rel=0.15)
    assert (speckled == 255).mean() == pytest.approx(share / 2, rel=0.15)


@pytest.mark.parametrize(
    'name', ['defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur', 'elastic_transform', 'pixelate']
)
def test_displacing_and_blurring_leave_a_flat_image(name):
    assert difference(draw(gray(77), name, 5), gray(77)) <= 1


def test_lengths_follow_the_size():
    """A point is spread over a disc of the published radius, as a fraction of the side."""
    for side in (112, 224, 448):
        point = np.zeros((side, side, 3), np.uint8)
        point[side // 2, side // 2] = 255
        kernel = CORRUPTIONS['defocus_blur'].apply(point.astype(np.float32), 10, None)[..., 0]
        radius = np.sqrt((kernel > 0.5 * kernel.max()).sum() / np.pi)
        assert radius == pytest.approx(10 * side / 224, rel=0.07)


@pytest.fixture(scope='module')
def photo():
    """A photo of the size for which the strengths were published."""
    small = cv2.resize(skimage.data.astronaut(), (224, 224), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[..., ::-1])


@pytest.mark.parametrize('name', sorted(set(CORRUPTIONS) - {'frost', 'defocus_blur'}))
def test_equals_the_published_procedure(photo, name):
    """Pixel by pixel with the same random numbers; results are rounded, and OpenCV interpolates in steps of 1/32."""
    for severity, strength in zip(SEVERITIES, CORRUPTIONS[name].strengths, strict=True):
        expected = getattr(imagenet_c, name)(photo, strength, np.random.default_rng(severity))
        result = draw(photo, name, severity, severity)
        assert difference(result, np.clip(expected, 0, 255)) < 0.4, severity


@pytest.mark.parametrize('severity', SEVERITIES)
def test_defocus_changes_as_much_as_published(photo, severity):
    radius = CORRUPTIONS['defocus_blur'].strengths[severity - 1]
    published = imagenet_c.defocus_blur(photo, radius, None)
    brightened = imagenet_c.defocus_blur(gray(), radius, None).mean() / 128
    assert brightened == pytest.approx(1.01 if severity > 3 else 1, abs=0.004)
    result = draw(photo, 'defocus_blur', severity)
    assert difference(result, photo) == pytest.approx(difference(published / brightened, photo), rel=0.01)
    assert difference(result, published / brightened) < 0.5


@pytest.mark.parametrize(('name', 'severity'), [('elastic_transform', 4), ('glass_blur', 5)])
def test_shifts_follow_the_size(name, severity):
    """Pixels of a ramp along the columns tell how far they have come."""
    spreads = []
    for side in (112, 224, 448):
        ramp = np.linspace(0, 1, side, dtype=np.float32)[None, :, None].repeat(side, 0).repeat(3, 2)
        strength = CORRUPTIONS[name].strengths[severity - 1]
        # Without what hides the shifts: the blur, and the motion of the whole image.
        strength = (1e-3, *strength[1:]) if name == 'glass_blur' else (*strength[:2], 0)
        moved = CORRUPTIONS[name].apply(ramp, strength, np.random.default_rng(0)) - ramp
        spreads.append(moved[20:-20, 20:-20].std())
    # As fractions of the side
    assert spreads == pytest.approx([spreads[1]] * 3, rel=0.15)


def test_brightness_and_contrast_by_hand():
    image = gray(100)
    image[:48] = 60
    assert np.unique(draw(image, 'brightness', 2)).tolist() == [111, 151]  # 0.2 is 51 levels
    assert np.unique(draw(image, 'contrast', 3)).tolist() == [76, 84]  # 80 -+ 20 * 0.2


def test_pixelate_by_hand():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4, :4] = 200
    image[0, 4] = 160
    result = draw(image, 'pixelate', 5)  # four pixels become one
    assert (result[:4, :4] == 200).all() and (result[:4, 4:] == 10).all() and (result[4:] == 0).all()


def test_unknown_corruption():
    with pytest.raises(ValueError, match="no corruption 'rain' of severity 1: choose among gaussian_noise, "):
        draw(gray(), 'rain', 1)
    with pytest.raises(ValueError, match='severity 6'):
        draw(gray(), 'fog', 6)
    with pytest.raises(ValueError, match="name='rain'.*occlusion, shuffle"):
        Perturb('rain', 1)
    for name in ('fog', 'shuffle'):
        with pytest.raises(ValueError, match=r'level=2\.5\): expected a whole number'):
            Perturb(name, 2.5)


def test_perturbation_depends_on_seed_and_image_alone(image):
    def apply(pixels, **settings):
        transform = TRANSFORMS.build(dict(type='Perturb', **settings))
        np.random.random()
        return transform(dict(img=pixels.copy()))['img']

    settings = dict(name='gaussian_noise', level=3)
    first = apply(image, **settings)
    assert np.array_equal(first, apply(image, **settings))
    assert not np.array_equal(first, apply(image, seed=1, **settings))
    other = image.copy()
    other[0, 0, 0] ^= 1
    assert difference(apply(other, **settings), first) > 5


def test_occlusion_hides_the_fraction(image):
    pixels = np.maximum(np.asarray(smooth_image((56, 56), 1)), 1)
    for fraction in (0.0, 0.25, 0.9, 1.0):
        result = occlude_patches(pixels, fraction, image_generator(pixels))
        hidden = (result == 0).all(2)
        assert hidden.mean() == pytest.approx(round(fraction * 196) / 196)
        blocks = hidden.reshape(14, 4, 14, 4)
        assert (blocks.any((1, 3)) == blocks.all((1, 3))).all()
        assert np.array_equal(result[~hidden], pixels[~hidden])


@pytest.mark.parametrize('size', [(12, 12), (13, 15)])
def test_shuffling_moves_whole_patches(size):
    image = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(*size, 3)
    result = shuffle_patches(image, 4, np.random.default_rng(0))
    patches = [
        {part[row : row + 3, column : column + 3].tobytes() for row in range(0, 12, 3) for column in range(0, 12, 3)}
        for part in (image, result)
    ]
    assert patches[0] == patches[1] and not np.array_equal(result, image)
    assert np.array_equal(result[12:], image[12:]) and np.array_equal(result[:, 12:], image[:, 12:])
