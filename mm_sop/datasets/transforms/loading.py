"""Loading of images in any common file format."""

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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

from mm_sop.utils.failures import UserError
from mm_sop.utils.files import open_regular, printable, read_regular

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'PPM', 'TIFF')
"""Accepted formats, detected from the content; Pillow would run external programs for some of the others."""

BACKGROUND = 128
"""Gray level behind transparent pixels."""

MAX_PIXELS = 89_478_485
"""Number of pixels above which Pillow suspects an attack; it refuses images of more than twice as many."""

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_JPEG_APP1 = 0xE1
_JPEG_BASELINE_TO_PROGRESSIVE = (0xC0, 0xC1, 0xC2)
_JPEG_FRAME_HEADERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Warnings of libjpeg after which it invents part of the image; others concern metadata or harmless oddities.
_JPEG_DAMAGE = ('remature end', 'bad Huffman code', 'extraneous bytes', 'instead of RST')

_ORIENTATION = 0x0112
# By EXIF orientation: whether to transpose, and the code of OpenCV's flip that follows.
_TURNS = {2: (False, 1), 3: (False, -1), 4: (False, 0), 5: (True, None), 6: (True, 1), 7: (True, -1), 8: (True, 0)}

# 16-bit images whose maximum is below this level, of 255, do not use their upper four bits.
_DARK = 16
_warned_of_dark = False


class UnreadableImageError(UserError):
    """An image file cannot be used; ``reason`` says in one line what is wrong with it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return printable(f'{self.path}: {self.reason}')


@TRANSFORMS.register_module()
@dataclass(eq=False)
class LoadImage(BaseTransform):
    """Load an image as an 8-bit color or gray image, whatever its format.

    libjpeg-turbo decodes plain JPEG files and refuses damaged ones, OpenCV decodes plain PNG files, and Pillow, which
    is slower, all others: palettes, CMYK, 16 bits (the upper 8 are kept), 32-bit integers and floats (scaled from their
    own minimum and maximum), transparency (on a mid-gray background) and animations (first frame). The EXIF orientation
    is applied.

    **Required Keys:** ``img_path``
    **Added Keys:** ``img`` (uint8 array of shape (H, W, 3), or (H, W) for ``channels=1``), ``img_shape``, ``ori_shape``;
    ``full_shape`` ((H, W) of the whole image) if it was decoded at reduced size

    Args:
        channels (int): 3 for color or 1 for gray; other images are converted.
        channel_order (str): ``'bgr'``, as the color transforms of MMCV and MMPretrain expect, or ``'rgb'``.
            With ``'bgr'`` the data preprocessor needs ``to_rgb=True``.
        max_pixels (int): Larger images count as unreadable; checked in the header, before decoding. At most twice
            :data:`MAX_PIXELS`.
        backend_args (dict, optional): Arguments of MMEngine's file backend.
        bit_depth (int): Number of bits that 16-bit files really use, such as 12 of many cameras and scanners: their
            values are shifted right by ``bit_depth - 8`` bits instead of 8; they lose their transparency.
        min_pixels (int, optional): JPEG files with 4, 16 or 64 times as many pixels are decoded at 1/2, 1/4 or 1/8 of
            their size, which saves most of the time for photographs of many megapixels.
            :class:`FastRandomResizedCrop` draws the same crops as from the whole image. Crops lose nothing that can be
            seen if the smallest has twice the pixels of its result in each direction. Defaults to None: whole images.

    Raises:
        UnreadableImageError: The file is missing, empty, truncated, damaged, too large or not an image.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), 'red.png')
        >>> Image.new('RGB', (5, 4), (255, 0, 0)).save(path)
        >>> image = LoadImage()(dict(img_path=path))['img']
        >>> image.shape, image[0, 0].tolist()  # BGR
        ((4, 5, 3), [0, 0, 255])
    """

    channels: int = 3
    channel_order: str = 'bgr'
    max_pixels: int = MAX_PIXELS
    backend_args: dict | None = field(default=None, repr=False)  # may contain credentials
    bit_depth: int = 16
    min_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(
                f'LoadImage(channels={self.channels}): images are loaded with 1 (gray) or 3 (color) channels. '
                "Set channels=3, and in the model backbone.in_channels=3 with three values in the preprocessor's "
                '`mean` and `std`; for data with other bands load them with a custom transform'
            )
        if self.channel_order not in ('bgr', 'rgb'):
            raise ValueError(f"LoadImage(channel_order='{self.channel_order}'): expected 'bgr' or 'rgb'")
        if not 0 < self.max_pixels <= 2 * MAX_PIXELS:
            raise ValueError(f'LoadImage(max_pixels={self.max_pixels}): expected 1 ... {2 * MAX_PIXELS}')
        if not 8 <= self.bit_depth <= 16:
            raise ValueError(f'LoadImage(bit_depth={self.bit_depth}): expected 8 ... 16')
        if self.min_pixels is not None and self.min_pixels < 1:
            raise ValueError(f'LoadImage(min_pixels={self.min_pixels}): expected 1 or more, or None')

    def transform(self, results: dict) -> dict:
        path = results['img_path']
        with _unreadable(path):
            data = read_regular(path, self.backend_args)
            image, full_shape = _decode(data, self.max_pixels, self.bit_depth, str(path), self.min_pixels)
        if image.shape[:2] != full_shape:
            results['full_shape'] = full_shape
        if self.channels == 1:
            # Without a third axis, which Pillow and some functions of OpenCV do not accept.
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        elif self.channel_order == 'rgb':
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results


def read_image(
    path: str | Path, max_pixels: int = MAX_PIXELS, backend_args: dict | None = None, bit_depth: int = 16
) -> np.ndarray:
    """Read and decode an image as BGR, uint8, (H, W, 3); see :class:`LoadImage`."""
    with _unreadable(path):
        return decode_image(read_regular(path, backend_args), max_pixels, bit_depth, str(path))


@contextmanager
def _unreadable(path: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # decoders raise errors of almost any type
        reason = error.strerror if isinstance(error, OSError) else None
        raise UnreadableImageError(str(path), reason or ' '.join(str(error).split()) or type(error).__name__) from error


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS, bit_depth: int = 16, name: str = 'an image') -> np.ndarray:
    """Decode the content of a file as BGR, uint8, (H, W, 3); see :class:`LoadImage`. Warnings contain the ``name``."""
    return _decode(data, max_pixels, bit_depth, name)[0]


def _decode(
    data: bytes, max_pixels: int, bit_depth: int, name: str, min_pixels: int | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """An image and the shape that it has, or had if it was decoded at reduced size, (H, W)."""
    if not data:
        raise ValueError('the file is empty')
    header = _read_png_header(data) if data.startswith(_PNG_SIGNATURE) else _read_jpeg_header(data)
    if header is not None:
        _check_pixels(header.size, max_pixels)
        width, height = header.size
        image = _decode_plain(data, (height, width), min_pixels)
        if image is not None:
            is_turned = _TURNS.get(header.orientation, (False, None))[0]
            return turn_upright(image, header.orientation), (width, height) if is_turned else (height, width)
    try:
        image = _decode_with_pillow(data, max_pixels, bit_depth, name)
    except UnidentifiedImageError as error:
        # Its own message names an address in memory.
        raise ValueError('not an image of a known format') from error
    return image, image.shape[:2]


class _Header(NamedTuple):
    size: tuple[int, int]
    orientation: int = 1


def _read_png_header(data: bytes) -> _Header | None:
    """Refuse a PNG with damaged chunks, of which decoders detect more or less, and return the header of a plain one.

    OpenCV and Pillow decode plain ones alike: complete, 8 bits, no palette, alpha or EXIF.
    """
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from('>I4s', data, position)
        end = position + 8 + length
        if not kind.isalpha() or end + 4 > len(data):
            raise ValueError('image file is truncated or damaged')
        is_critical = not kind[0] & 0x20
        checksum = int.from_bytes(data[end : end + 4], 'big')
        if is_critical and zlib.crc32(memoryview(data)[position + 4 : end]) != checksum:
            raise ValueError(f'the {kind.decode()} chunk is damaged: its checksum differs')
        if kind == b'IEND':
            break
        position = end + 4
    width, height, depth, color_type = struct.unpack_from('>IIBB', data.ljust(26, b'\0'), 16)
    is_plain = depth == 8 and color_type in (0, 2) and b'tRNS' not in data and b'eXIf' not in data
    return _Header((width, height)) if is_plain and b'IEND' in data[-64:] else None


def _read_jpeg_header(data: bytes) -> _Header | None:
    """Header of a JPEG that does not need Pillow: 8 bits, 1 or 3 components, no arithmetic coding."""
    if not data.startswith(b'\xff\xd8'):
        return None
    position, orientation = 2, 1
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _JPEG_FRAME_HEADERS:
            depth, height, width, components = struct.unpack_from('>BHHB', data, position + 4)
            is_plain = marker in _JPEG_BASELINE_TO_PROGRESSIVE and depth == 8 and components in (1, 3) and height
            return _Header((width, height), orientation) if is_plain else None
        # 0xFF may be repeated before a marker; all other segments before the frame header have a length.
        length = 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4], 'big')
        if marker == _JPEG_APP1 and data[position + 4 : position + 10] == b'Exif\0\0':
            orientation = _parse_orientation(data[position + 4 : position + length])
        position += length
    return None


def _decode_plain(data: bytes, shape: tuple[int, int], min_pixels: int | None) -> np.ndarray | None:
    """Decode a plain PNG, or a JPEG strictly: OpenCV and Pillow silently fill damaged parts with gray or noise.

    The shape is (H, W); a JPEG is reduced as far as ``min_pixels`` allow.
    """
    if not data.startswith(_PNG_SIGNATURE):
        reduction = 1
        while min_pixels and reduction < 8 and shape[0] * shape[1] >= (2 * reduction) ** 2 * min_pixels:
            reduction *= 2
        height, width = (-(-side // reduction) for side in shape)
        try:
            return simplejpeg.decode_jpeg(data, 'BGR', min_height=height, min_width=width, strict=True)
        except ValueError as error:
            if any(sign in str(error) for sign in _JPEG_DAMAGE):
                raise
            # Unusual, but not damaged; or of a kind that only OpenCV supports.
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)


def _parse_orientation(segment: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(segment)
        return exif.get(_ORIENTATION, 1)
    except Exception:  # damaged metadata raise errors of almost any type, and the image may be intact
        return 1


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation, 1 ... 8, to a stored image or label map, (H, W) or (H, W, C)."""
    transposed, flip = _TURNS.get(orientation, (False, None))
    image = cv2.transpose(image) if transposed else image
    return image if flip is None else cv2.flip(image, flip)


def read_geometry(path: str | Path) -> tuple[tuple[int, int], int]:
    """Width and height of an upright image and its EXIF orientation, 1 ... 8, from the header of the file.

    Raises:
        UnreadableImageError: It is not an image.
    """
    with _unreadable(path), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            orientation = find_orientation(image)
            # Pillow gives the upright size of a TIFF.
            is_transposed = orientation >= 5 and image.format != 'TIFF'
            return (image.size[::-1] if is_transposed else image.size), orientation


def find_orientation(image: Image.Image) -> int:
    """EXIF orientation of an opened image, 1 ... 8, without decoding it."""
    if image.format in ('JPEG', 'MPO', 'PNG'):
        # For these, Pillow would also search the whole PNG, or XMP metadata, which other decoders ignore.
        orientation = _parse_orientation(image.info.get('exif') or b'')
    else:
        orientation = image.getexif().get(_ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def _decode_with_pillow(data: bytes, max_pixels: int, bit_depth: int, name: str) -> np.ndarray:
    with warnings.catch_warnings():
        # Warnings about metadata, and about sizes, which are checked here.
        warnings.simplefilter('ignore')
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.size, max_pixels)
            has_16_bits = ';16' in f'{image.mode} {image.tile}'
            if has_16_bits and bit_depth < 16:
                # OpenCV applies the orientation of a TIFF itself.
                orientation = 1 if image.format == 'TIFF' else find_orientation(image)
                return _decode_16_bits(data, orientation, bit_depth)
            color = np.asarray(to_rgb(image))
    if has_16_bits and color.max() < _DARK:
        _warn_of_dark(int(color.max()), name)
    return cv2.cvtColor(color, cv2.COLOR_RGB2BGR)


def _decode_16_bits(data: bytes, orientation: int, bit_depth: int) -> np.ndarray:
    """Decode 16-bit values of which only the lower bits are used."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None or image.dtype != np.uint16:
        raise ValueError('its 16-bit values cannot be decoded')
    if int(image.max()) >> bit_depth:
        raise ValueError(f'has values up to {image.max()}, which bit_depth={bit_depth} cannot represent')
    return turn_upright(np.right_shift(image, bit_depth - 8).astype(np.uint8), orientation)


def _warn_of_dark(brightest: int, name: str) -> None:
    """Warn once that a 16-bit image, converted to 8 bits, is nearly black."""
    global _warned_of_dark  # noqa: PLW0603  # once per process
    worker = get_worker_info()
    if _warned_of_dark or not is_main_process() or (worker is not None and worker.id > 0):
        return
    _warned_of_dark = True
    maximum = 256 * brightest + 255
    print_log(
        f'{printable(name)} has 16 bits, but no value above {maximum}: it becomes nearly black. If the files use '
        f'fewer bits, set LoadImage(bit_depth={max(maximum.bit_length(), 8)}). This warning appears once',
        'current',
        logging.WARNING,
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode like :class:`LoadImage`: upright, 8 bits, without transparency.

    Raises:
        ValueError: It contains values that are not finite.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ('I', 'F') or image.mode.startswith('I;16'):
        values = np.asarray(image)
        if values.dtype.kind == 'u' and values.dtype.itemsize == 2:  # in either byte order
            return Image.fromarray((values >> 8).astype(np.uint8)).convert('RGB')
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(high - low):
            raise ValueError('contains values that are not finite')
        scaled = (values - low) * (255 / max(high - low, 1e-12)) + 0.5
        return Image.fromarray(scaled.astype(np.uint8)).convert('RGB')
    if image.has_transparency_data:
        canvas = Image.new('RGBA', image.size, (BACKGROUND, BACKGROUND, BACKGROUND, 255))
        canvas.alpha_composite(image.convert('RGBA'))
        image = canvas
    return image.convert('RGB')


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise ValueError(f'{size[0]} x {size[1]} pixels, more than max_pixels={max_pixels}')
