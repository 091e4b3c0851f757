"""Loading of photographs in any common file format."""

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from mmcv.transforms import BaseTransform
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmpretrain.registry import TRANSFORMS
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import get_worker_info

from mm_sop.datasets.files import open_regular, printable, read_regular

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'PPM', 'TIFF')
"""Formats that are tried, by content and not by extension; others can start foreign programs in Pillow."""

BACKGROUND = 128
"""Grey level behind transparent pixels."""

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_JPEG_APP1 = 0xE1
_JPEG_BASELINE_TO_PROGRESSIVE = (0xC0, 0xC1, 0xC2)
_JPEG_FRAME_HEADERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Warnings of libjpeg after which part of the picture is made up; others are about metadata or harmless oddities.
_JPEG_DAMAGE = ('remature end', 'bad Huffman code', 'extraneous bytes', 'instead of RST')

_ORIENTATION = 0x0112
# By EXIF orientation: whether to transpose, and then OpenCV's code of a flip.
_TURNS = {2: (False, 1), 3: (False, -1), 4: (False, 0), 5: (True, None), 6: (True, 1), 7: (True, -1), 8: (True, 0)}

# Brightest level of 16-bit pictures, of 255, that use their upper four bits.
_DARK = 16
_warned_of_dark = False


class UnreadableImageError(Exception):
    """A picture that cannot be used.

    Args:
        path (str): Its file.
        reason (str): What is wrong with it, in one line.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return printable(f'{self.path}: {self.reason}')


@TRANSFORMS.register_module()
class LoadPicture(BaseTransform):
    """Load a picture as 8-bit colour or grey image, however it is stored.

    Plain JPEG files are decoded by libjpeg-turbo, which refuses damaged ones, and plain PNG files by OpenCV. All others
    take the slower way through Pillow: palettes, CMYK, 16 bits (the upper 8 are kept), 32-bit integers and floats
    (stretched from their own minimum to their maximum), transparency (laid over mid-grey) and animations (first frame).
    The EXIF orientation is applied.

    **Required Keys:** ``img_path``

    **Added Keys:** ``img`` (uint8 array of shape (H, W, 3), or (H, W) for ``channels=1``), ``img_shape``, ``ori_shape``

    Args:
        channels (int): 3 for colour or 1 for grey; pictures of the other kind are converted. Defaults to 3.
        channel_order (str): ``'bgr'``, as the colour transforms of MMCV and MMPretrain expect, or ``'rgb'``.
            With ``'bgr'`` the data preprocessor needs ``to_rgb=True``. Defaults to ``'bgr'``.
        max_pixels (int): Larger pictures count as unreadable; found out from the header, before decoding. Defaults to
            89,478,485, above which Pillow suspects an attack; at most twice that, where Pillow refuses.
        backend_args (dict, optional): Arguments of MMEngine's file backend. Defaults to None.
        bit_depth (int): Bits that 16-bit files really use, such as 12 of many cameras and scanners: those files become
            8-bit by ``bit_depth - 8``, instead of 8, bits of less; they lose their transparency. Defaults to 16.

    Raises:
        UnreadableImageError: The file is missing, empty, truncated, damaged, too large or no picture.
    """

    def __init__(
        self,
        channels: int = 3,
        channel_order: str = 'bgr',
        max_pixels: int = Image.MAX_IMAGE_PIXELS,
        backend_args: dict | None = None,
        bit_depth: int = 16,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(
                f'LoadPicture(channels={channels}): pictures are loaded with 1 (grey) or 3 (colour) channels. '
                "Set channels=3, and in the model backbone.in_channels=3 with three values in the preprocessor's "
                '`mean` and `std`; for data with other bands load them with a transform of your own'
            )
        if channel_order not in ('bgr', 'rgb'):
            raise ValueError(f"LoadPicture(channel_order='{channel_order}'): expected 'bgr' or 'rgb'")
        if not 0 < max_pixels <= 2 * Image.MAX_IMAGE_PIXELS:
            raise ValueError(f'LoadPicture(max_pixels={max_pixels}): expected 1 ... {2 * Image.MAX_IMAGE_PIXELS}')
        if not 8 <= bit_depth <= 16:
            raise ValueError(f'LoadPicture(bit_depth={bit_depth}): expected 8 ... 16')
        self.channels = channels
        self.channel_order = channel_order
        self.max_pixels = max_pixels
        self.backend_args = backend_args
        self.bit_depth = bit_depth

    def transform(self, results: dict) -> dict:
        image = read_image(results['img_path'], self.max_pixels, self.backend_args, self.bit_depth)
        if self.channels == 1:
            # Without a third axis, which Pillow and some functions of OpenCV do not take.
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        elif self.channel_order == 'rgb':
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(channels={self.channels}, channel_order={self.channel_order!r}, '
            f'max_pixels={self.max_pixels}, bit_depth={self.bit_depth})'
        )


def read_image(
    path: str | Path,
    max_pixels: int = Image.MAX_IMAGE_PIXELS,
    backend_args: dict | None = None,
    bit_depth: int = 16,
) -> np.ndarray:
    """Read and decode a picture; see :class:`LoadPicture`.

    Returns:
        BGR image, uint8, shape (H, W, 3).
    """
    with _unreadable(path):
        return decode_image(read_regular(path, backend_args), max_pixels, bit_depth, str(path))


@contextmanager
def _unreadable(path: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # decoders raise almost anything on broken bytes
        raise UnreadableImageError(str(path), _reason(error)) from error


def decode_image(
    data: bytes, max_pixels: int = Image.MAX_IMAGE_PIXELS, bit_depth: int = 16, name: str = 'an image'
) -> np.ndarray:
    """Decode a picture; see :class:`LoadPicture`.

    Args:
        data (bytes): Content of the file.
        max_pixels (int): Largest width times height that is decoded.
        bit_depth (int): Bits that 16-bit files use.
        name (str): What a warning calls it.

    Returns:
        np.ndarray: BGR image, uint8, shape (H, W, 3).
    """
    if not data:
        raise ValueError('the file is empty')
    image = None
    if data.startswith(_PNG_SIGNATURE):
        _check_png(data)
        size = _plain_png_size(data)
        if size is not None:
            _check_pixels(size, max_pixels)
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    elif (header := _read_jpeg_header(data)) is not None:
        _check_pixels(header.size, max_pixels)
        image = _decode_jpeg(data, header.orientation)
    if image is not None:
        return image
    try:
        return _decode_with_pillow(data, max_pixels, bit_depth, name)
    except UnidentifiedImageError as error:
        # Its own message names an address in memory.
        raise ValueError('not a picture of a known format') from error


def _check_png(data: bytes) -> None:
    """Refuse a PNG whose chunks are damaged: decoders differ in how much of that they notice."""
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from('>I4s', data, position)
        end = position + 8 + length
        is_critical = not kind[0] & 0x20
        if not kind.isalpha() or end + 4 > len(data):
            raise ValueError('image file is truncated or damaged')
        if is_critical and zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(
            data[end : end + 4], 'big'
        ):
            raise ValueError(f'the {kind.decode()} chunk is damaged: its checksum is another one')
        if kind == b'IEND':
            return
        position = end + 4


def _plain_png_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG that OpenCV reads as Pillow does: complete, 8 bits, no palette, alpha or EXIF."""
    width, height, depth, color_type = struct.unpack_from('>IIBB', data.ljust(26, b'\0'), 16)
    plain = depth == 8 and color_type in (0, 2) and b'tRNS' not in data and b'eXIf' not in data
    return (width, height) if plain and b'IEND' in data[-64:] else None


class _JpegHeader(NamedTuple):
    size: tuple[int, int]
    orientation: int


def _read_jpeg_header(data: bytes) -> _JpegHeader | None:
    """Header of a JPEG that needs no conversion by Pillow: 8 bits, 1 or 3 components, no arithmetic coding."""
    if not data.startswith(b'\xff\xd8'):
        return None
    position, orientation = 2, 1
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _JPEG_FRAME_HEADERS:
            depth, height, width, components = struct.unpack_from('>BHHB', data, position + 4)
            plain = marker in _JPEG_BASELINE_TO_PROGRESSIVE and depth == 8 and components in (1, 3) and height
            return _JpegHeader((width, height), orientation) if plain else None
        # 0xFF may be repeated before a marker; every other segment up to the frame header has a length.
        is_fill = marker == 0xFF
        length = 1 if is_fill else 2 + int.from_bytes(data[position + 2 : position + 4], 'big')
        if marker == _JPEG_APP1 and data[position + 4 : position + 10] == b'Exif\0\0':
            orientation = _parse_orientation(data[position + 4 : position + length])
        position += length
    return None


def _decode_jpeg(data: bytes, orientation: int) -> np.ndarray | None:
    """Decode strictly: OpenCV and Pillow fill what is damaged or missing with grey or noise, and say nothing."""
    try:
        image = simplejpeg.decode_jpeg(data, 'BGR', strict=True)
    except ValueError as error:
        if any(sign in str(error) for sign in _JPEG_DAMAGE):
            raise
        # Odd, but not damaged; or a kind that only another decoder knows.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else turn_upright(image, orientation)


def _parse_orientation(segment: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(segment)
        return exif.get(_ORIENTATION, 1)
    except Exception:  # of damaged metadata almost anything is raised, and the picture may be sound
        return 1


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a stored picture or label map, (H, W) or (H, W, C), as its EXIF orientation, 1 ... 8, says."""
    transposed, flip = _TURNS.get(orientation, (False, None))
    image = cv2.transpose(image) if transposed else image
    return image if flip is None else cv2.flip(image, flip)


def read_geometry(path: str | Path) -> tuple[tuple[int, int], int]:
    """Width and height of an upright picture and its EXIF orientation, 1 ... 8, from the header of the file.

    Raises:
        UnreadableImageError: It is no picture.
    """
    with _unreadable(path), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            orientation = find_orientation(image)
            # Of a TIFF Pillow gives the upright size.
            is_transposed = orientation >= 5 and image.format != 'TIFF'
            return (image.size[::-1] if is_transposed else image.size), orientation


def find_orientation(image: Image.Image) -> int:
    """EXIF orientation of an opened picture, 1 ... 8, without decoding it."""
    if image.format in ('JPEG', 'MPO', 'PNG'):
        # Of these Pillow would look further: in the whole PNG, or in XMP, which other decoders do not obey.
        orientation = _parse_orientation(image.info.get('exif') or b'')
    else:
        orientation = image.getexif().get(_ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def _decode_with_pillow(data: bytes, max_pixels: int, bit_depth: int, name: str) -> np.ndarray:
    with warnings.catch_warnings():
        # Remarks on metadata and on sizes, which are checked here.
        warnings.simplefilter('ignore')
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.size, max_pixels)
            deep = ';16' in f'{image.mode} {image.tile}'
            if deep and bit_depth < 16:
                # OpenCV turns TIFFs by itself.
                orientation = 1 if image.format == 'TIFF' else find_orientation(image)
                return _decode_deep(data, orientation, bit_depth)
            colour = np.asarray(to_rgb(image))
    if deep and colour.max() < _DARK:
        _warn_of_dark(int(colour.max()), name)
    return cv2.cvtColor(colour, cv2.COLOR_RGB2BGR)


def _decode_deep(data: bytes, orientation: int, bit_depth: int) -> np.ndarray:
    """Decode 16-bit values of which only the lower bits are used."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None or image.dtype != np.uint16:
        raise ValueError('its 16-bit values cannot be decoded')
    if image.max() >> bit_depth:
        raise ValueError(f'has values up to {image.max()}, which bit_depth={bit_depth} does not hold')
    return turn_upright((image >> (bit_depth - 8)).astype(np.uint8), orientation)


def _warn_of_dark(brightest: int, name: str) -> None:
    """Say once that a 16-bit picture, now with 8 bits, is nearly black."""
    global _warned_of_dark
    worker = get_worker_info()
    if _warned_of_dark or not is_main_process() or (worker is not None and worker.id > 0):
        return
    _warned_of_dark = True
    highest = 256 * brightest + 255
    print_log(
        f'{printable(name)} has 16 bits, but no value above {highest}: it becomes nearly black. If the files hold '
        f'fewer bits, say so: LoadPicture(bit_depth={max(highest.bit_length(), 8)}). This is said once',
        'current',
        logging.WARNING,
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture as :class:`LoadPicture` does: upright, 8 bits, without transparency.

    Args:
        image: Picture of any mode.

    Raises:
        ValueError: It has values that are not finite.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ('I', 'F') or image.mode.startswith('I;16'):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert('RGB')
    if image.has_transparency_data:
        canvas = Image.new('RGBA', image.size, (BACKGROUND, BACKGROUND, BACKGROUND, 255))
        canvas.alpha_composite(image.convert('RGBA'))
        image = canvas
    return image.convert('RGB')


def _to_8_bits(values):
    # Of either byte order.
    if values.dtype.kind == 'u' and values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise ValueError('contains values that are not finite')
    return ((values - low) * (255 / max(high - low, 1e-12)) + 0.5).astype(np.uint8)


def _check_pixels(size, max_pixels):
    if size[0] * size[1] > max_pixels:
        raise ValueError(f'{size[0]} x {size[1]} pixels, more than max_pixels={max_pixels}')


def _reason(error):
    """Describe an error in one line that is the same in every process."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return ' '.join(str(error).split()) or type(error).__name__
