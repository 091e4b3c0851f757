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
from sample_pictures import smooth_picture

from mm_sop.datasets.files import printable
from mm_sop.datasets.transforms import UnreadableImageError
from mm_sop.datasets.transforms.loading import decode_image

EXIF_ORIENTATION = 0x0112


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def load(path, **settings):
    return TRANSFORMS.build(dict(type='LoadPicture', **settings))(dict(img_path=str(path)))['img']


def decode_rgb(data):
    return decode_image(data)[..., ::-1].astype(int)


@pytest.fixture
def picture():
    return smooth_picture((37, 23))


@pytest.mark.parametrize('format', ['PNG', 'BMP', 'PPM', 'TIFF', 'GIF'])
def test_lossless_formats_keep_every_pixel(picture, format):
    picture = picture.quantize(200) if format == 'GIF' else picture
    assert np.array_equal(decode_rgb(encode(picture, format)), np.asarray(picture.convert('RGB')))


@pytest.mark.parametrize(
    'options', [{}, dict(progressive=True), dict(subsampling=0), dict(restart_marker_blocks=2)], ids=str
)
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_jpeg_agrees_with_pillow(picture, mode, options):
    data = encode(picture.convert(mode), 'JPEG', quality=92, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).astype(int)
    assert np.abs(decode_rgb(data) - expected).max() <= 2


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied(picture, format, orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    data = encode(picture, format, exif=exif, **({} if format == 'PNG' else dict(quality=95)))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB')).astype(int)
    decoded = decode_rgb(data)
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected).max() <= 2


@pytest.mark.parametrize('format', ['PNG', 'WEBP', 'TIFF'])
def test_alpha_is_laid_over_mid_grey(picture, format):
    picture.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 37).astype(np.uint8), (23, 1))))
    rgba = np.asarray(picture).astype(float)
    alpha = rgba[..., 3:] / 255
    decoded = decode_rgb(encode(picture, format, **(dict(lossless=True, exact=True) if format == 'WEBP' else {})))
    assert np.abs(decoded - (alpha * rgba[..., :3] + (1 - alpha) * 128)).max() <= 1.01


def test_transparent_colours_of_palette_grey_and_rgb_pngs():
    palette = Image.new('P', (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    assert decode_rgb(encode(palette, 'PNG')).tolist() == [[[255, 0, 0], [0, 255, 0]]]
    assert decode_rgb(encode(palette, 'PNG', transparency=0)).tolist() == [[[128, 128, 128], [0, 255, 0]]]
    grey = Image.fromarray(np.array([[10, 200]], np.uint8))
    assert decode_rgb(encode(grey, 'PNG', transparency=10)).tolist() == [[[128] * 3, [200] * 3]]
    colour = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert decode_rgb(encode(colour, 'PNG', transparency=(1, 2, 3))).tolist() == [[[128] * 3, [4, 5, 6]]]


def test_deep_pictures_become_8_bit(tmp_path):
    ramp = np.array([[0, 256, 32768, 65535]], np.uint16)
    cv2.imwrite(str(tmp_path / 'grey.png'), ramp)
    cv2.imwrite(str(tmp_path / 'colour.png'), np.stack([ramp // 2, ramp, ramp], -1))
    assert load(tmp_path / 'grey.png')[0, :, 0].tolist() == [0, 1, 128, 255]
    big_endian = Image.frombytes('I;16B', ramp.shape[::-1], ramp.astype('>u2').tobytes())
    assert decode_image(encode(big_endian, 'TIFF'))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert load(tmp_path / 'colour.png')[0].tolist() == [[0, 0, 0], [0, 1, 1], [64, 128, 128], [127, 255, 255]]
    for values in (np.array([[-1.0, 0.0, 1.0]], np.float32), np.array([[7, 8, 9]], np.int32)):
        assert decode_image(encode(Image.fromarray(values), 'TIFF'))[0, :, 2].tolist() == [0, 128, 255]
    assert decode_image(encode(Image.fromarray(np.ones((1, 2), np.float32)), 'TIFF')).max() == 0
    assert decode_image(encode(Image.fromarray(np.array([[True, False]])), 'PNG'))[0, :, 0].tolist() == [255, 0]


def test_animations_give_their_first_frame(picture):
    frames = [picture.quantize(64), Image.new('P', picture.size)]
    data = encode(frames[0], 'GIF', save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_rgb(data), np.asarray(frames[0].convert('RGB')))


def test_channels_and_their_order(tmp_path):
    path = tmp_path / 'red.png'
    Image.new('RGB', (5, 4), (255, 0, 0)).save(path)
    assert load(path).shape == (4, 5, 3)
    assert load(path)[0, 0].tolist() == [0, 0, 255]
    assert load(path, channel_order='rgb')[0, 0].tolist() == [255, 0, 0]
    grey = load(path, channels=1)
    assert grey.shape == (4, 5, 1)
    assert grey[0, 0, 0] == 76  # ITU-R 601 luma of red
    assert all(load(path, **settings).flags.c_contiguous for settings in ({}, dict(channel_order='rgb')))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(channels=4), 'backbone.in_channels=3'),
        (dict(channel_order='gbr'), "expected 'bgr' or 'rgb'"),
        (dict(max_pixels=10**10), 'expected 1 ... 178956970'),
    ],
)
def test_rejects_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(dict(type='LoadPicture', **settings))


def png_header(width, height):
    header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack('>I', 13) + header + struct.pack('>I', zlib.crc32(header))
    return b'\x89PNG\r\n\x1a\n' + chunk + encode(Image.new('RGB', (1, 1)), 'PNG')[33:]


def jpeg_with_size(width, height):
    data = bytearray(encode(smooth_picture(), 'JPEG'))
    struct.pack_into('>HH', data, data.index(b'\xff\xc0') + 5, height, width)
    return bytes(data)


def broken_files():
    picture = smooth_picture((300, 200))
    jpeg, png = encode(picture, 'JPEG'), encode(picture, 'PNG')
    return {
        'half.jpg': (jpeg[: len(jpeg) // 2], 'image file is truncated'),
        'last_byte.jpg': (jpeg[:-1], 'image file is truncated'),
        'header_only.jpg': (jpeg[:100], ''),
        'half.png': (png[: len(png) // 2], 'truncated'),
        'signature_only.png': (png[:8], ''),
        'zero_bytes.jpg': (b'', 'the file is empty'),
        'text.png': (b'not a picture', 'not a picture of a known format'),
        'postscript.jpg': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not a picture of a known format'),
        'huge.png': (png_header(60000, 60000), '60000 x 60000 pixels, more than max_pixels=89478485'),
        'huge.jpg': (jpeg_with_size(65500, 65500), '65500 x 65500 pixels'),
    }


@pytest.mark.parametrize('name', broken_files())
def test_broken_files_raise_with_path_and_reason(tmp_path, name, monkeypatch):
    content, reason = broken_files()[name]
    # Versions of OpenCV make a picture of anything that begins well; it must not be asked.
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
        smooth_picture((20, 10)).save(tmp_path / name)
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


def test_names_are_shown_without_what_fools_a_terminal():
    name = os.fsdecode(b'a\xe9\n\t\x1b[2J') + '\u202e\u3000\xe9\u6f22 b'
    shown = 'a\\xe9\\n\\t\\x1b[2J\\u202e\u3000\xe9\u6f22 b'
    assert printable(name) == shown
    assert os.fsencode(printable(name, keep_bytes=True)) == shown.replace('\\xe9', '!').encode().replace(b'!', b'\xe9')
    assert shown in str(UnreadableImageError(name, 'truncated'))
