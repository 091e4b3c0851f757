import io
import os
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS
from PIL import Image, ImageOps
from testing.sample_images import smooth_image

from mm_sop.datasets.transforms import UnreadableImageError
from mm_sop.datasets.transforms.loading import decode_image, read_geometry
from mm_sop.utils.files import printable

EXIF_ORIENTATION = 0x0112


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def load(path, **settings):
    return TRANSFORMS.build(dict(type='LoadImage', **settings))(dict(img_path=str(path)))['img']


def decode_rgb(data):
    return decode_image(data)[..., ::-1].astype(int)


@pytest.fixture
def image():
    return smooth_image((37, 23))


@pytest.mark.parametrize('format', ['PNG', 'BMP', 'PPM', 'TIFF', 'GIF'])
def test_lossless_formats_keep_every_pixel(image, format):
    image = image.quantize(200) if format == 'GIF' else image
    assert np.array_equal(decode_rgb(encode(image, format)), np.asarray(image.convert('RGB')))


@pytest.mark.parametrize(
    'options', [{}, dict(progressive=True), dict(subsampling=0), dict(restart_marker_blocks=2)], ids=str
)
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_jpeg_agrees_with_pillow(image, mode, options):
    data = encode(image.convert(mode), 'JPEG', quality=92, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).astype(int)
    assert np.abs(decode_rgb(data) - expected).max() <= 2


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied(image, format, orientation, tmp_path):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    data = encode(image, format, exif=exif, **({} if format in ('PNG', 'TIFF') else dict(quality=95)))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB')).astype(int)
    decoded = decode_rgb(data)
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected).max() <= 2
    (tmp_path / 'image').write_bytes(data)
    assert read_geometry(tmp_path / 'image') == (expected.shape[1::-1], orientation)


@pytest.mark.parametrize('format', ['PNG', 'WEBP', 'TIFF'])
def test_alpha_is_laid_over_mid_gray(image, format):
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 37).astype(np.uint8), (23, 1))))
    rgba = np.asarray(image).astype(float)
    alpha = rgba[..., 3:] / 255
    decoded = decode_rgb(encode(image, format, **(dict(lossless=True, exact=True) if format == 'WEBP' else {})))
    assert np.abs(decoded - (alpha * rgba[..., :3] + (1 - alpha) * 128)).max() <= 1.01


def test_transparent_colors_of_palette_gray_and_rgb_pngs():
    palette = Image.new('P', (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    assert decode_rgb(encode(palette, 'PNG')).tolist() == [[[255, 0, 0], [0, 255, 0]]]
    assert decode_rgb(encode(palette, 'PNG', transparency=0)).tolist() == [[[128, 128, 128], [0, 255, 0]]]
    gray = Image.fromarray(np.array([[10, 200]], np.uint8))
    assert decode_rgb(encode(gray, 'PNG', transparency=10)).tolist() == [[[128] * 3, [200] * 3]]
    color = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert decode_rgb(encode(color, 'PNG', transparency=(1, 2, 3))).tolist() == [[[128] * 3, [4, 5, 6]]]


def test_16_bit_images_become_8_bit(tmp_path):
    ramp = np.array([[0, 256, 32768, 65535]], np.uint16)
    cv2.imwrite(str(tmp_path / 'gray.png'), ramp)
    cv2.imwrite(str(tmp_path / 'color.png'), np.stack([ramp // 2, ramp, ramp], -1))
    assert load(tmp_path / 'gray.png')[0, :, 0].tolist() == [0, 1, 128, 255]
    big_endian = Image.frombytes('I;16B', ramp.shape[::-1], ramp.astype('>u2').tobytes())
    assert decode_image(encode(big_endian, 'TIFF'))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert load(tmp_path / 'color.png')[0].tolist() == [[0, 0, 0], [0, 1, 1], [64, 128, 128], [127, 255, 255]]
    for values in (np.array([[-1.0, 0.0, 1.0]], np.float32), np.array([[7, 8, 9]], np.int32)):
        assert decode_image(encode(Image.fromarray(values), 'TIFF'))[0, :, 2].tolist() == [0, 128, 255]
    assert decode_image(encode(Image.fromarray(np.ones((1, 2), np.float32)), 'TIFF')).max() == 0
    assert decode_image(encode(Image.fromarray(np.array([[True, False]])), 'PNG'))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize('ending', ['png', 'tif'])
@pytest.mark.parametrize('shape', [(20, 30), (20, 30, 3)], ids=['gray', 'color'])
def test_12_bits_in_16_bit_files(tmp_path, shape, ending, monkeypatch, capsys):
    monkeypatch.setattr('mm_sop.datasets.transforms.loading._warned_of_dark', False)
    values = np.random.default_rng(0).integers(0, 4096, shape, np.uint16)
    cv2.imwrite(str(tmp_path / f'a.{ending}'), values)
    expected = np.broadcast_to((values >> 4).reshape(20, 30, -1), (20, 30, 3))
    assert np.array_equal(load(tmp_path / f'a.{ending}', bit_depth=12), expected)
    assert capsys.readouterr().out == ''
    for _ in range(2):
        assert np.array_equal(load(tmp_path / f'a.{ending}'), expected >> 4)
    (message,) = capsys.readouterr().out.splitlines()
    assert f'a.{ending}' in message and 'no value above 4095' in message and 'bit_depth=12' in message
    with pytest.raises(UnreadableImageError, match='which bit_depth=11 cannot represent'):
        load(tmp_path / f'a.{ending}', bit_depth=11)


@pytest.mark.parametrize('ending', ['PNG', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_12_bit_images_are_turned_like_others(orientation, ending):
    values = np.random.default_rng(0).integers(0, 4096, (20, 30), np.uint16)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    data = [encode(Image.fromarray(each), ending, exif=exif) for each in (values, (values >> 4).astype(np.uint8))]
    assert np.array_equal(decode_image(data[0], bit_depth=12), decode_image(data[1]))


def test_animations_give_their_first_frame(image):
    frames = [image.quantize(64), Image.new('P', image.size)]
    data = encode(frames[0], 'GIF', save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_rgb(data), np.asarray(frames[0].convert('RGB')))


def test_channels_and_their_order(tmp_path):
    path = tmp_path / 'red.png'
    Image.new('RGB', (5, 4), (255, 0, 0)).save(path)
    assert load(path).shape == (4, 5, 3)
    assert load(path)[0, 0].tolist() == [0, 0, 255]
    assert load(path, channel_order='rgb')[0, 0].tolist() == [255, 0, 0]
    gray = load(path, channels=1)
    assert gray.shape == (4, 5)
    assert gray[0, 0] == 76  # ITU-R 601 luma of red
    smooth_image().save(tmp_path / 'a.jpg')
    for settings in ({}, dict(channel_order='rgb'), dict(channels=1)):
        assert load(tmp_path / 'a.jpg', **settings).flags.c_contiguous
        assert load(tmp_path / 'a.jpg', **settings).flags.writeable
    assert all(load(path, **settings).flags.c_contiguous for settings in ({}, dict(channel_order='rgb')))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(channels=4), 'backbone.in_channels=3'),
        (dict(channel_order='gbr'), "expected 'bgr' or 'rgb'"),
        (dict(max_pixels=10**10), 'expected 1 ... 178956970'),
        (dict(bit_depth=4), 'expected 8 ... 16'),
        (dict(min_pixels=0), 'expected 1 or more, or None'),
    ],
)
def test_rejects_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(dict(type='LoadImage', **settings))


def png_header(width, height):
    header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack('>I', 13) + header + struct.pack('>I', zlib.crc32(header))
    return b'\x89PNG\r\n\x1a\n' + chunk + encode(Image.new('RGB', (1, 1)), 'PNG')[33:]


def jpeg_with_size(width, height):
    data = bytearray(encode(smooth_image(), 'JPEG'))
    struct.pack_into('>HH', data, data.index(b'\xff\xc0') + 5, height, width)
    return bytes(data)


def broken_files():
    image = smooth_image((300, 200))
    jpeg, png = encode(image, 'JPEG'), encode(image, 'PNG')
    return {
        'half.jpg': (jpeg[: len(jpeg) // 2], 'Premature end of JPEG file'),
        'last_byte.jpg': (jpeg[:-1], 'Premature end of JPEG file'),
        'header_only.jpg': (jpeg[:100], ''),
        'half.png': (png[: len(png) // 2], 'truncated'),
        'signature_only.png': (png[:8], ''),
        'zero_bytes.jpg': (b'', 'the file is empty'),
        'text.png': (b'not an image', 'not an image of a known format'),
        'postscript.jpg': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not an image of a known format'),
        'huge.png': (png_header(60000, 60000), '60000 x 60000 pixels, more than max_pixels=89478485'),
        'huge.jpg': (jpeg_with_size(65500, 65500), '65500 x 65500 pixels'),
    }


@pytest.mark.parametrize('name', broken_files())
def test_broken_files_raise_with_path_and_reason(tmp_path, name, monkeypatch):
    content, reason = broken_files()[name]
    # Versions of OpenCV make an image of anything that begins well; it must not be asked.
    monkeypatch.setattr(cv2, 'imdecode', lambda data, flags: np.zeros((9, 9, 3), np.uint8))
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError) as info:
        load(path)
    assert info.value.path == str(path)
    assert reason in info.value.reason
    assert info.value.reason
    # The same text in every process: no memory addresses.
    assert '0x' not in info.value.reason and '\n' not in info.value.reason
    assert str(pickle.loads(pickle.dumps(info.value))) == str(info.value)


def test_folders_and_missing_files_are_unreadable(tmp_path):
    (tmp_path / 'folder.jpg').mkdir()
    for name, reason in {'folder.jpg': 'Is a directory', 'none.jpg': 'No such file or directory'}.items():
        with pytest.raises(UnreadableImageError, match=reason):
            load(tmp_path / name)


def test_limit_of_pixels_is_inclusive(tmp_path):
    for name in ('a.png', 'a.jpg', 'a.webp'):
        smooth_image((20, 10)).save(tmp_path / name)
        assert load(tmp_path / name, max_pixels=200).shape == (10, 20, 3)
        with pytest.raises(UnreadableImageError, match='20 x 10 pixels, more than max_pixels=199'):
            load(tmp_path / name, max_pixels=199)


@pytest.mark.parametrize('settings', [{}, dict(backend_args=dict(backend='local'))], ids=['default', 'backend'])
def test_fifos_and_devices_are_unreadable(tmp_path, settings):
    os.mkfifo(tmp_path / 'fifo.jpg')
    (tmp_path / 'zero.jpg').symlink_to('/dev/zero')
    for name in ('fifo.jpg', 'zero.jpg'):
        with pytest.raises(UnreadableImageError, match='Not a regular file'):
            load(tmp_path / name, **settings)


def test_names_are_shown_without_control_characters():
    name = os.fsdecode(b'a\xe9\n\t\x1b[2J') + '\u202e\u3000\xe9\u6f22 b'
    shown = 'a\\xe9\\n\\t\\x1b[2J\\u202e\u3000\xe9\u6f22 b'
    assert printable(name) == shown
    assert os.fsencode(printable(name, keep_bytes=True)) == shown.replace('\\xe9', '!').encode().replace(b'!', b'\xe9')
    assert shown in str(UnreadableImageError(name, 'truncated'))


def noisy_image(size=(160, 120), seed=0):
    noise = np.random.default_rng(seed).normal(0, 6, (*size[::-1], 3))
    return Image.fromarray(np.clip(np.asarray(smooth_image(size, seed)) + noise, 0, 255).astype(np.uint8))


JPEG_KINDS = {
    'baseline': {},
    'optimized': dict(optimize=True),
    'progressive': dict(progressive=True),
    'restarts': dict(restart_marker_blocks=4),
    'gray': {},
}


@pytest.mark.parametrize('kind', JPEG_KINDS)
def test_damaged_jpegs_are_unreadable(kind):
    image = noisy_image().convert('L') if kind == 'gray' else noisy_image()
    sound = encode(image, 'JPEG', quality=90, **JPEG_KINDS[kind])
    decode_image(sound)
    generator = np.random.default_rng(0)
    for cut in generator.integers(len(sound) // 2, len(sound) - 600, 12).tolist():
        rest = len(sound) - cut
        damaged = dict(
            padded=sound[:cut] + bytes(rest),
            padded_with_end=sound[:cut] + bytes(rest - 2) + b'\xff\xd9',
            far_padded=sound[:cut] + bytes(100_000),
            ended=sound[:cut] + b'\xff\xd9',
            zeroed=sound[:cut] + bytes(512) + sound[cut + 512 :],
        )
        for name, data in damaged.items():
            with pytest.raises(ValueError, match=r'(?i)premature end|corrupt jpeg'):
                print(name, cut, decode_image(data).shape)


@pytest.mark.parametrize('kind', JPEG_KINDS)
@pytest.mark.parametrize('exif', [False, True])
def test_sound_jpegs_are_decoded_as_by_opencv(kind, exif):
    """Bit for bit: nothing about training on sound images may change."""
    orientation = Image.Exif()
    for number, size in enumerate([(160, 120), (33, 17), (1, 1), (8, 300)]):
        for options in (dict(quality=75), dict(quality=95, subsampling=0), dict(quality=85, subsampling=1)):
            orientation[EXIF_ORIENTATION] = 2 * number + 1
            options = dict(options, **JPEG_KINDS[kind], **(dict(exif=orientation) if exif else {}))
            image = noisy_image(size, number)
            data = encode(image.convert('L') if kind == 'gray' else image, 'JPEG', **options)
            # Cameras append previews, and phones a video.
            for whole in (data, data + b'appended' * 100 + data):
                expected = cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_COLOR)
                assert np.array_equal(decode_image(whole), expected)


def test_harmless_oddities_of_jpegs_are_accepted():
    sound = encode(noisy_image(), 'JPEG')
    jfif = bytearray(sound)
    jfif[jfif.index(b'JFIF\0') + 5] = 9  # an unknown revision
    for data in (bytes(jfif), sound.replace(b'\xff\xd9', b'\xff\xff\xff\xd9')):
        assert np.array_equal(decode_image(data), decode_image(sound))


def test_damaged_pngs_are_unreadable():
    for image in (noisy_image(), noisy_image().quantize(64), noisy_image().convert('LA')):
        sound = encode(image, 'PNG')
        for cut in np.random.default_rng(0).integers(len(sound) // 4, len(sound) - 600, 12).tolist():
            rest = len(sound) - cut
            for data in (sound[:cut] + bytes(rest), sound[:cut] + bytes(512) + sound[cut + 512 :]):
                with pytest.raises(ValueError, match='damaged'):
                    decode_image(data)
        # Not the image itself.
        start = sound.index(b'IEND') - 4
        comment = struct.pack('>I', 3) + b'tEXtabc' + bytes(4)
        with_comment = sound[:start] + comment + sound[start:]
        assert np.array_equal(decode_image(with_comment), decode_image(sound))


@pytest.mark.parametrize('orientation', [1, 6])
@pytest.mark.parametrize(('min_pixels', 'reduction'), [(1000, 8), (5000, 4), (20_000, 2), (30_000, 1), (None, 1)])
def test_large_jpegs_are_decoded_at_reduced_size(tmp_path, orientation, min_pixels, reduction):
    """Only JPEG files; the same crops are drawn, and show the same but for what is lost in decoding."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    smooth_image((322, 254)).save(tmp_path / 'a.jpg', quality=95, exif=exif)
    results = TRANSFORMS.build(dict(type='LoadImage', min_pixels=min_pixels))(dict(img_path=str(tmp_path / 'a.jpg')))
    sides = (254, 322) if orientation == 1 else (322, 254)
    assert results['img'].shape == (*(-(-side // reduction) for side in sides), 3)
    assert results.get('full_shape', sides) == sides

    crop = TRANSFORMS.build(dict(type='FastRandomResizedCrop', scale=16, crop_ratio_range=(0.5, 1.0)))
    whole = dict(img_path=str(tmp_path / 'a.jpg'), img=load(tmp_path / 'a.jpg'))
    views = []
    for source in (whole, results):
        np.random.seed(3)
        views.append(crop(source)['img'].astype(int))
        views.append(np.random.random())
    assert views[1] == views[3]
    assert np.abs(views[0] - views[2]).mean() <= (4 if reduction > 1 else 0)


def test_other_formats_are_not_reduced(tmp_path):
    smooth_image((322, 254)).save(tmp_path / 'a.png')
    assert load(tmp_path / 'a.png', min_pixels=100).shape == (254, 322, 3)
