"""Augmentations that are faster than the stock ones."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import RandomGrayscale as MMCVRandomGrayscale
from mmpretrain.datasets import ColorJitter, RandomResizedCrop
from mmpretrain.registry import TRANSFORMS

_Range = float | Sequence[float]


@TRANSFORMS.register_module()
class FastRandomResizedCrop(RandomResizedCrop):
    """Random resized crop with antialiased bicubic interpolation.

    Yields the image of Pillow's bicubic filter, which SOP and iBOT use, up to one or two gray levels, in 1/3 to 1/8
    of the time. OpenCV's bicubic interpolation is as fast but does not antialias.

    **Required Keys:** ``img`` (uint8, shape (H, W, C)); ``full_shape`` if the image was decoded at reduced size
    **Modified Keys:** ``img``, ``img_shape``
    **Deleted Keys:** ``full_shape``

    Args:
        scale (int | Sequence[int]): Size of the result, (height, width) or one number for both.
        crop_ratio_range (Sequence[float]): Area of the crop as a fraction of the image.
        aspect_ratio_range (Sequence[float]): Ratio of the crop's width to its height.
        max_attempts (int): Number of draws before the center is cropped instead.

    Example:
        >>> crop = FastRandomResizedCrop(scale=96, crop_ratio_range=(0.14, 1.0))
        >>> crop(dict(img=np.zeros((120, 80, 3), np.uint8)))['img'].shape
        (96, 96, 3)
    """

    def __init__(
        self,
        scale: int | Sequence[int],
        crop_ratio_range: Sequence[float] = (0.08, 1.0),
        aspect_ratio_range: Sequence[float] = (3.0 / 4.0, 4.0 / 3.0),
        max_attempts: int = 10,
    ) -> None:
        super().__init__(scale, crop_ratio_range, aspect_ratio_range, max_attempts, interpolation='bicubic')

    def transform(self, results: dict) -> dict:
        image = results['img']
        # Images decoded at reduced size have the crops of the whole one, at its nearest pixels.
        full_shape = results.pop('full_shape', image.shape[:2])
        reduction = round(max(full_shape) / max(image.shape[:2]))
        top, left, height, width = self.rand_crop_params(np.broadcast_to(np.uint8(0), full_shape))
        top, bottom, left, right = (round(edge / reduction) for edge in (top, top + height, left, left + width))
        crop = image[top:bottom, left:right]
        results['img'] = resize_bicubic(crop, self.scale)
        results['img_shape'] = results['img'].shape[:2]
        return results


@TRANSFORMS.register_module()
class FastColorJitter(ColorJitter):
    """Randomly change brightness, contrast, saturation and hue, in random order.

    Draws the same random numbers as ``ColorJitter`` and yields the same image up to a few gray levels of rounding, in
    about a third of the time: brightness and contrast are look-up tables. Gray images have neither saturation nor hue:
    only their brightness and contrast change, after the same draws.

    **Required Keys:** ``img`` (uint8 BGR image of shape (H, W, 3), or gray image of shape (H, W, 1) or (H, W))
    **Modified Keys:** ``img``

    Args:
        brightness (float | Sequence[float]): Factor from ``[max(0, 1 - brightness), 1 + brightness]`` or the given
            range; likewise ``contrast`` and ``saturation``.
        hue (float | Sequence[float]): Shift from ``[-hue, hue]`` or the given range, as a fraction of the color
            circle, at most 0.5.

    Example:
        >>> image = np.full((8, 8, 3), 100, np.uint8)
        >>> FastColorJitter(brightness=(1.5, 1.5))(dict(img=image))['img'][0, 0].tolist()
        [150, 150, 150]
    """

    def __init__(
        self, brightness: _Range = 0.0, contrast: _Range = 0.0, saturation: _Range = 0.0, hue: _Range = 0.0
    ) -> None:
        super().__init__(brightness, contrast, saturation, hue, backend='cv2')

    def transform(self, results: dict) -> dict:
        order, factors = self.draw()
        results['img'] = change_colors(results['img'], order, factors)
        return results

    def draw(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Draw the order of the four operations and their factors; see :func:`change_colors`."""
        order = tuple(np.random.permutation(4).tolist())
        ranges = self.brightness, self.contrast, self.saturation, self.hue
        drawn = (None if limits is None else np.random.uniform(*limits) for limits in ranges)
        return order, tuple(n if f is None else f for f, n in zip(drawn, (1.0, 1.0, 1.0, 0.0), strict=True))


# Replaces MMCV's, so that recipes also accept gray images.
@TRANSFORMS.register_module(force=True)
class RandomGrayscale(MMCVRandomGrayscale):
    """MMCV's transform, which leaves gray images of shape (H, W) in that shape, the only one that the blur accepts."""

    def transform(self, results: dict) -> dict:
        is_flat = results['img'].ndim == 2
        results = super().transform(results)
        if is_flat:
            results['img'] = results['img'].reshape(results['img'].shape[:2])
        return results


def change_colors(image: np.ndarray, order: Sequence[int], factors: Sequence[float]) -> np.ndarray:
    """Change the colors of an image, uint8, BGR or gray, which stays as it is.

    Args:
        image: (H, W, 3), or (H, W, 1) or (H, W), which have neither saturation nor hue.
        order: Order of the operations: 0 brightness, 1 contrast, 2 saturation, 3 hue.
        factors: Of each operation: of all values; of their difference from the mean gray level; of their difference
            from the gray image; and the shift of the hue as a fraction of the color circle. 1, 1, 1, 0 change nothing.
    """
    is_gray = image.ndim == 2 or image.shape[2] == 1
    table = None
    for operation in order:
        factor = factors[operation]
        if factor == (0 if operation == 3 else 1) or (is_gray and operation > 1):
            continue
        if operation == 0:
            table = _linear_table(factor, 0.0, table)
            continue
        image, table = _look_up(image, table), None
        if operation == 1:
            table = _linear_table(factor, _mean_gray(image) * (1 - factor))
        else:
            image = (_adjust_saturation if operation == 2 else _shift_hue)(image, factor)
    return _look_up(image, table)


def _linear_table(slope: float, offset: float, after: np.ndarray | None = None) -> np.ndarray:
    values = np.arange(256) if after is None else after
    return np.clip(values * slope + offset, 0, 255).astype(np.uint8)


def _look_up(image: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    # OpenCV drops the axis of a single channel.
    return image if table is None else cv2.LUT(image, table).reshape(image.shape)


def _mean_gray(image: np.ndarray) -> int:
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.shape[2:] == (3,) else image
    return round(cv2.mean(gray)[0])  # type: ignore[index]  # four numbers, one per channel


def _adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(image, factor, to_gray(image), 1 - factor, 0)


def _shift_hue(image: np.ndarray, shift: float) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)
    hsv[..., 0] += np.uint8(int(shift * 255) % 256)  # type: ignore[misc]  # wraps around, as the circle does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)


def to_gray(image: np.ndarray) -> np.ndarray:
    """Gray version of a BGR image in three equal channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


def resize_bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image, uint8, (H, W, C) or (H, W), to (height, width) with Pillow's antialiased bicubic filter."""
    # (1, C, H, W) in this memory layout, for which PyTorch has its fastest 8-bit kernel and which the result keeps.
    channels_last = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image)))[None].permute(0, 3, 1, 2)
    resized = F.interpolate(channels_last, size=tuple(size), mode='bicubic', antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy()).reshape(*size, *image.shape[2:])
