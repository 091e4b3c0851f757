"""Views of an image, of which everything random is drawn first and applied together, on the host or on the device."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import RandomApply, RandomFlip
from mmpretrain.datasets import GaussianBlur, MultiView, RandomResizedCrop, Solarize
from mmpretrain.datasets import PackInputs as MMPretrainPackInputs
from mmpretrain.registry import TRANSFORMS

from mm_sop.datasets.transforms.augmentation import (
    FastColorJitter,
    FastRandomResizedCrop,
    RandomGrayscale,
    change_colors,
    to_gray,
)
from mm_sop.functional.augmentation import COLOR_ORDERS, MAX_BLUR_SIGMA

_GRAY_WEIGHTS = (0.114, 0.587, 0.299)


@dataclass(slots=True)
class Augmentation:
    """What is drawn for the augmentation of a view after its crop, in the order in which it is applied."""

    flip: bool = False
    color_order: tuple[int, ...] = (0, 1, 2, 3)
    color_factors: tuple[float, ...] = (1.0, 1.0, 1.0, 0.0)
    grayscale: bool = False
    blur_sigma: float = 0.0
    solarize_threshold: float = 256.0

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Augment an image, uint8, BGR (H, W, 3) or gray (H, W, 1) or (H, W), which stays as it is."""
        shape = image.shape
        if self.flip:
            image = cv2.flip(image, 1).reshape(shape)
        image = change_colors(image, self.color_order, self.color_factors)
        if self.grayscale and shape[2:] == (3,):
            image = to_gray(image)
        if self.blur_sigma:
            image = cv2.GaussianBlur(image, (0, 0), self.blur_sigma).reshape(shape)
        if self.solarize_threshold <= 255:
            values = np.arange(256, dtype=np.uint8)
            image = cv2.LUT(image, np.where(values < self.solarize_threshold, values, 255 - values)).reshape(shape)
        return image

    def as_parameters(self) -> np.ndarray:
        """The row that :func:`mm_sop.functional.augment` takes, (12,)."""
        order, colors = COLOR_ORDERS[self.color_order], self.color_factors
        values = self.flip, *colors, order, self.grayscale, self.blur_sigma, self.solarize_threshold, 0, 0, 0
        return np.array(values, dtype=np.float32)


def _draw_flip(transform: RandomFlip, drawn: Augmentation) -> None:
    drawn.flip ^= np.random.random() < transform.prob


def _draw_colors(transform: FastColorJitter, drawn: Augmentation) -> None:
    drawn.color_order, drawn.color_factors = transform.draw()


def _draw_grayscale(transform: RandomGrayscale, drawn: Augmentation) -> None:
    drawn.grayscale = random.random() < transform.prob


def _draw_blur(transform: GaussianBlur, drawn: Augmentation) -> None:
    if np.random.random() <= transform.prob:
        drawn.blur_sigma = _draw_magnitude(transform) if transform.radius is None else transform.radius


def _draw_solarization(transform: Solarize, drawn: Augmentation) -> None:
    if np.random.random() <= transform.prob:
        drawn.solarize_threshold = _draw_magnitude(transform) if transform.thr is None else transform.thr


def _draw_magnitude(transform: GaussianBlur | Solarize) -> float:
    level = transform.magnitude_level
    if transform.magnitude_std == 'inf':
        level = np.random.uniform(0, level)
    low, high = transform.magnitude_range
    return level / transform.total_level * (high - low) + low


def _draw_some(transform: RandomApply, drawn: Augmentation) -> None:
    if np.random.random() < transform.prob:
        for each in transform.transforms:
            _DRAWS[type(each)](each, drawn)


# Draw the same random numbers as the transforms, whose own methods cost more than the draws.
_DRAWS: dict[type, Callable[[Any, Augmentation], None]] = {
    RandomFlip: _draw_flip,
    FastColorJitter: _draw_colors,
    RandomGrayscale: _draw_grayscale,
    GaussianBlur: _draw_blur,
    Solarize: _draw_solarization,
    RandomApply: _draw_some,
}
_ORDER = [FastColorJitter, RandomGrayscale, GaussianBlur, Solarize]


class _View:
    """Pipeline of a view: transforms that run as they are, then those of which only the draws are made."""

    def __init__(self, transforms: Sequence[Callable]) -> None:
        first = len(transforms)
        while first and _can_be_drawn(transforms[first - 1 :]):
            first -= 1
        self.leading, self.drawn = transforms[:first], transforms[first:]
        # Others may write into their image.
        self.keeps_image = all(type(each) in (FastRandomResizedCrop, RandomResizedCrop) for each in self.leading)

    def __call__(self, results: dict) -> tuple[np.ndarray, Augmentation]:
        """Make the view, and draw its augmentation."""
        results = dict(results) if self.keeps_image else copy.deepcopy(results)
        for transform in self.leading:
            results = transform(results)
        drawn = Augmentation()
        for transform in self.drawn:
            _DRAWS[type(transform)](transform, drawn)
        return results['img'], drawn


def _can_be_drawn(transforms: Sequence[Callable]) -> bool:
    """Whether an :class:`Augmentation` can express transforms: flips anywhere, the others once and in its order."""
    flat = [*_flatten(transforms)]
    if not all(type(each) in _DRAWS and _has_usual_options(each) for each in flat):
        return False
    order = [_ORDER.index(type(each)) for each in flat if type(each) is not RandomFlip]
    return order == sorted(set(order))


def _flatten(transforms: Sequence[Callable]) -> Iterator[Callable]:
    for transform in transforms:
        if isinstance(transform, RandomApply):
            yield from _flatten(transform.transforms.transforms)
        else:
            yield transform


def _has_usual_options(transform: Any) -> bool:
    if isinstance(transform, RandomFlip):
        return isinstance(transform.prob, float) and transform.direction in ('horizontal', ['horizontal'])
    if isinstance(transform, RandomGrayscale):
        weights = np.allclose(transform.channel_weights, _GRAY_WEIGHTS, atol=1e-3)
        return transform.keep_channels and transform.color_format == 'bgr' and weights
    if isinstance(transform, GaussianBlur) and max(transform.magnitude_range or [transform.radius]) > MAX_BLUR_SIGMA:
        return False
    return getattr(transform, 'magnitude_std', 0) in (0, 'inf')


@TRANSFORMS.register_module()
class FastMultiView(MultiView):
    """Create views of one image, as ``MultiView`` with the same random numbers, in a fraction of the time.

    The last transforms of a view among ``RandomFlip``, :class:`FastColorJitter`, :class:`RandomGrayscale`,
    ``GaussianBlur`` and ``Solarize``, alone or in ``RandomApply``, are drawn first and then applied together: on the
    host, or by the data preprocessor on the device. Flips may stand anywhere, the others in this order. Transforms
    before them, and others, run as they are.

    Images equal those of ``MultiView`` but for single gray levels, and for the blur: that of OpenCV, with Pillow's
    radius as its standard deviation, is Gaussian, while Pillow's is the sum of boxes.

    **Required Keys:** ``img`` (uint8, BGR or gray)
    **Modified Keys:** ``img`` (list of views, (H, W, C))
    **Added Keys:** ``augmentations`` (on the device: list of parameters of :func:`mm_sop.functional.augment`, (12,))

    Args:
        transforms (Sequence[Sequence[dict]]): Pipelines, as for ``MultiView``.
        num_views (int | Sequence[int]): Number of views of each pipeline.
        augment_on (str): ``'host'``, or ``'device'``; the config's ``augment_on`` decides in training.

    Raises:
        ValueError: ``augment_on`` is neither.

    Example:
        >>> crop = dict(type='mmpretrain.FastRandomResizedCrop', scale=32)
        >>> flip = dict(type='mmpretrain.RandomFlip', prob=0.5)
        >>> views = FastMultiView([[crop, flip]], num_views=2)
        >>> [view.shape for view in views(dict(img=np.zeros((48, 48, 3), np.uint8)))['img']]
        [(32, 32, 3), (32, 32, 3)]
    """

    def __init__(
        self, transforms: Sequence[Sequence[dict]], num_views: int | Sequence[int], augment_on: str = 'host'
    ) -> None:
        super().__init__(transforms, num_views)
        if augment_on not in ('host', 'device'):
            raise ValueError(f"augment_on={augment_on!r} of {type(self).__name__}: expected 'host' or 'device'")
        self.augment_on = augment_on
        self.views = [_View(pipeline.transforms) for pipeline in self.transforms]

    def transform(self, results: dict) -> dict:
        made = [view(source) for view, source in zip(self.views, self.sources(results), strict=True)]
        if self.augment_on == 'device':
            results['img'] = [_planar(image) for image, _ in made]
            results['augmentations'] = [drawn.as_parameters() for _, drawn in made]
        else:
            results['img'] = [_planar(drawn.apply(image)) for image, drawn in made]
        return results

    def sources(self, results: dict) -> list[dict]:
        """The sample that each view shows."""
        return [results] * len(self.views)


def _planar(image: np.ndarray) -> np.ndarray:
    """The image with planes of channels in memory, as networks want them, in the same shape."""
    if image.ndim == 2 or image.shape[2] == 1:
        return image
    planes = np.empty((image.shape[2], *image.shape[:2]), image.dtype)
    cv2.split(image, [*planes])
    return planes.transpose(1, 2, 0)


# Replaces MMPretrain's, so that augmentations travel with their views; otherwise they are the same.
@TRANSFORMS.register_module(force=True)
class PackInputs(MMPretrainPackInputs):
    """MMPretrain's transform, which also packs the ``augmentations`` of :class:`FastMultiView`."""

    def transform(self, results: dict) -> dict:
        packed = super().transform(results)
        if 'augmentations' in results:
            packed['augmentations'] = [*map(torch.from_numpy, results['augmentations'])]
        return packed
