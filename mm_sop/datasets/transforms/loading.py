"""Loading of photographs in any common file format."""

import io
import struct
import warnings

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from PIL import Image, ImageOps, UnidentifiedImageError

from mm_sop.datasets.files import printable, read_regular

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'PPM', 'TIFF')
"""Formats that are tried, by content and not by extension; others can start foreign programs in Pillow."""

BACKGROUND = 128
"""Grey level behind transparent pixels."""

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_JPEG_BASELINE_TO_PROGRESSIVE = (0xC0, 0xC1, 0xC2)
_JPEG_FRAME_HEADERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


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

    Plain JPEG and PNG files are decoded by OpenCV. All others take the slower way through Pillow: palettes, CMYK,
    16 bits (the upper 8 are kept), 32-bit integers and floats (stretched from their own minimum to their maximum),
    transparency (laid over mid-grey) and animations (first frame). The EXIF orientation is applied.

    **Required Keys:** ``img_path``

    **Added Keys:** ``img`` (uint8 array of shape (H, W, channels)), ``img_shape``, ``ori_shape``

    Args:
        channels (int): 3 for colour or 1 for grey; pictures of the other kind are converted. Defaults to 3.
        channel_order (str): ``'bgr'``, as the colour transforms of MMCV and MMPretrain expect, or ``'rgb'``.
            With ``'bgr'`` the data preprocessor needs ``to_rgb=True``. Defaults to ``'bgr'``.
        max_pixels (int): Larger pictures count as unreadable; found out from the header, before decoding. Defaults to
            89,478,485, above which Pillow suspects an attack; at most twice that, where Pillow refuses.
        backend_args (dict, optional): Arguments of MMEngine's file backend. Defaults to None.

    Raises:
        UnreadableImageError: The file is missing, empty, truncated, too large or no picture.
    """

    def __init__(
        self,
        channels: int = 3,
        channel_order: str = 'bgr',
        max_pixels: int = Image.MAX_IMAGE_PIXELS,
        backend_args: dict | None = None,
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
        self.channels = channels
        self.channel_order = channel_order
        self.max_pixels = max_pixels
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        try:
            image = decode_image(read_regular(results['img_path'], self.backend_args), self.max_pixels)
        except Exception as error:  # decoders raise almost anything on broken bytes
            raise UnreadableImageError(str(results['img_path']), _reason(error)) from error
        if self.channels == 1:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]
        elif self.channel_order == 'rgb':
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(channels={self.channels}, channel_order={self.channel_order!r}, '
            f'max_pixels={self.max_pixels})'
        )


def decode_image(data: bytes, max_pixels: int = Image.MAX_IMAGE_PIXELS) -> np.ndarray:
    """Decode a picture; see :class:`LoadPicture`.

    Args:
        data (bytes): Content of the file.
        max_pixels (int): Largest width times height that is decoded.

    Returns:
        np.ndarray: BGR image, uint8, shape (H, W, 3).
    """
    if not data:
        raise ValueError('the file is empty')
    size = _plain_png_size(data) if data.startswith(_PNG_SIGNATURE) else _plain_jpeg_size(data)
    if size is not None:
        _check_pixels(size, max_pixels)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is not None:
            return image
    try:
        return _decode_with_pillow(data, max_pixels)
    except UnidentifiedImageError as error:
        # Its own message names an address in memory.
        raise ValueError('not a picture of a known format') from error


def _plain_png_size(data):
    """Width and height of a PNG that OpenCV reads as Pillow does: complete, 8 bits, no palette, alpha or EXIF."""
    width, height, depth, color_type = struct.unpack_from('>IIBB', data.ljust(26, b'\0'), 16)
    plain = depth == 8 and color_type in (0, 2) and b'tRNS' not in data and b'eXIf' not in data
    return (width, height) if plain and b'IEND' in data[-64:] else None


def _plain_jpeg_size(data):
    """Width and height of a JPEG that OpenCV reads as Pillow does: complete, 8 bits, 1 or 3 components.

    The end marker is looked for because versions of OpenCV fill the missing part of a truncated file with grey.
    """
    if not data.startswith(b'\xff\xd8'):
        return None
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _JPEG_FRAME_HEADERS:
            depth, height, width, components = struct.unpack_from('>BHHB', data, position + 4)
            plain = marker in _JPEG_BASELINE_TO_PROGRESSIVE and depth == 8 and components in (1, 3) and height
            return (width, height) if plain and data.rfind(b'\xff\xd9', position) > 0 else None
        # 0xFF may be repeated before a marker; every other segment up to the frame header has a length.
        is_fill = marker == 0xFF
        position += 1 if is_fill else 2 + int.from_bytes(data[position + 2 : position + 4], 'big')
    return None


def _decode_with_pillow(data, max_pixels):
    with warnings.catch_warnings():
        # Remarks on metadata and on sizes, which are checked here.
        warnings.simplefilter('ignore')
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.size, max_pixels)
            colour = _flatten(ImageOps.exif_transpose(image))
    return cv2.cvtColor(np.asarray(colour), cv2.COLOR_RGB2BGR)


def _flatten(image):
    """Convert to RGB without transparency."""
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
