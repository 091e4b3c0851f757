"""How images are resized and cropped for a frozen encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose
from mmpretrain.registry import TRANSFORMS
from mmpretrain.structures import DataSample
from PIL import Image

from mm_sop.datasets.transforms.loading import UnreadableImageError

INTERPOLATIONS = ('bicubic', 'bilinear', 'lanczos', 'hamming', 'box', 'nearest', 'area')
"""Filters for resizing: ``'area'`` by OpenCV, the others by Pillow, which antialiases when it shrinks."""


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize the shorter side of an image and crop its center.

    Args:
        crop_size: Side of the square crop that the encoder sees, in pixels.
        resize_edge: Length of the shorter side before the crop. Defaults to None: 8/7 of the crop, as 256 to 224; crops
            below 160 pixels show the whole shorter side.
        interpolation: One of :data:`INTERPOLATIONS`.

    Raises:
        ValueError: The filter is unknown, or the crop larger than the image.

    Example:
        >>> EvaluationTransform(224).resize_edge, EvaluationTransform(96).resize_edge
        (256, 96)
        >>> [step['type'] for step in EvaluationTransform(224).steps]
        ['LoadImage', 'TrimLongSide', 'ResizeEdge', 'CenterCrop', 'PackInputs']
    """

    crop_size: int = 224
    resize_edge: int | None = None
    interpolation: str = 'bicubic'

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f'interpolation {self.interpolation!r}: expected one of {", ".join(INTERPOLATIONS)}')
        edge = self.resize_edge
        if edge is None:
            edge = self.crop_size if self.crop_size < 160 else round(self.crop_size * 8 / 7)
            object.__setattr__(self, 'resize_edge', edge)
        if not 0 < self.crop_size <= edge:
            raise ValueError(f'crop_size={self.crop_size} must be in [1, resize_edge={edge}]')

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Pipeline of a dataset whose samples have ``img_path``."""
        return [dict(type='LoadImage'), *self.array_steps]

    @property
    def array_steps(self) -> list[dict[str, Any]]:
        """Pipeline of a dataset whose samples have ``img``, BGR."""
        backend = 'cv2' if self.interpolation == 'area' else 'pillow'
        return [
            dict(type='TrimLongSide'),
            dict(type='ResizeEdge', scale=self.resize_edge, interpolation=self.interpolation, backend=backend),
            dict(type='CenterCrop', crop_size=self.crop_size),
            dict(type='PackInputs'),
        ]


class BlackIfUnreadable:
    """Pipeline that gives a black image in place of an unreadable one, and the reason in ``data_samples.unreadable``.

    Args:
        steps: Transforms that end with ``PackInputs``.
        size: Side of the images.
    """

    def __init__(self, steps: Sequence[dict], size: int) -> None:
        self.pipeline = Compose(steps)
        self.size = size

    def __call__(self, results: dict) -> dict:
        try:
            return self.pipeline(results)
        except UnreadableImageError as error:
            sample = DataSample()
            sample.set_metainfo(dict(unreadable=((error.path, error.reason),)))
            return dict(inputs=torch.zeros(3, self.size, self.size, dtype=torch.uint8), data_samples=sample)


@TRANSFORMS.register_module()
@dataclass(eq=False)
class TrimLongSide(BaseTransform):
    """Cut the ends off very long images before the shorter side is resized and the center is cropped.

    Without it, a strip of 60,000 x 1 pixels would be enlarged to 15 million x 256. The center remains, which contains
    the crop and every pixel that the filters for resizing reach, so that the crop is the same, up to the rounding of
    its position.

    **Required Keys:** ``img`` (uint8, shape (H, W, C))
    **Modified Keys:** ``img``, ``img_shape``

    Args:
        ratio (int): Remaining length as a multiple of the shorter side; at least 8, because Lanczos reaches three
            shorter sides in either direction.

    Example:
        >>> TrimLongSide().transform(dict(img=np.zeros((2, 100, 3), np.uint8)))['img_shape']
        (2, 16)
    """

    ratio: int = 8

    def __post_init__(self) -> None:
        if self.ratio < 8:
            raise ValueError(f'TrimLongSide(ratio={self.ratio}): expected at least 8')

    def transform(self, results: dict) -> dict:
        image = results['img']
        longest = self.ratio * min(image.shape[:2])
        top, left = (max(0, (side - longest) // 2) for side in image.shape[:2])
        image = np.ascontiguousarray(image[top : len(image) - top, left : image.shape[1] - left])
        results.update(img=image, img_shape=image.shape[:2])
        return results


@TRANSFORMS.register_module()
@dataclass(eq=False)
class FitWithin(BaseTransform):
    """Shrink the longer side of an image to at most ``max_side`` pixels, and cut out the box that the sample may have.

    Smaller images keep their size. A box is shown at the scale of its whole image, as in the revisited Oxford and
    Paris benchmark.

    **Required Keys:** ``img`` (uint8, shape (H, W, C)); optional ``box`` (x1, y1, x2, y2 in pixels)
    **Modified Keys:** ``img``, ``img_shape``

    Example:
        >>> image = np.zeros((60, 100, 3), np.uint8)
        >>> FitWithin(50).transform(dict(img=image))['img_shape']
        (30, 50)
        >>> FitWithin(50).transform(dict(img=image, box=(10, 5, 50, 25)))['img_shape']
        (10, 20)
    """

    max_side: int

    def __post_init__(self) -> None:
        if self.max_side < 1:
            raise ValueError(f'FitWithin(max_side={self.max_side}): expected a positive number of pixels')

    def transform(self, results: dict) -> dict:
        image = results['img']
        factor = min(1.0, self.max_side / max(image.shape[:2]))
        if 'box' in results:
            left, top, right, bottom = (max(round(value), 0) for value in results['box'])
            image = image[top:bottom, left:right]
            if not image.size:
                box, (height, width) = tuple(results['box']), results['img'].shape[:2]
                raise ValueError(
                    f'box {box} of {results.get("img_path")} has no pixel in an image of {width} x {height}'
                )
        if factor < 1:
            size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        results.update(img=np.ascontiguousarray(image), img_shape=image.shape[:2])
        return results
