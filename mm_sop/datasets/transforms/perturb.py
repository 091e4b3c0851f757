"""Deterministic perturbations that make images hard to recognize."""

import zlib
from dataclasses import dataclass

import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS

from mm_sop.datasets.transforms.corruptions import CORRUPTIONS, corrupt

OCCLUSION_GRID = 14
"""Rows and columns of the patches that are occluded."""


@TRANSFORMS.register_module()
@dataclass(eq=False)
class Perturb(BaseTransform):
    """Corrupt, occlude or shuffle an image.

    The random numbers depend on the seed and the image alone, not on its index in the dataset.

    **Required Keys:** ``img`` (uint8 BGR image of shape (H, W, 3))
    **Modified Keys:** ``img``

    Args:
        name (str): One of :data:`~mm_sop.datasets.transforms.corruptions.CORRUPTIONS`, ``'occlusion'`` or
            ``'shuffle'``.
        level (float): Severity 1 ... 5 of a corruption, occluded fraction, or rows and columns of the shuffled patches.

    Raises:
        ValueError: The name is unknown, or the level is not a whole number where it has to be.

    Example:
        >>> image = np.full((28, 28, 3), 200, np.uint8)
        >>> bool((Perturb('occlusion', 0.5)(dict(img=image))['img'] == 0).mean() == 0.5)
        True
    """

    name: str
    level: float
    seed: int = 0

    def __post_init__(self) -> None:
        name, level = self.name, self.level
        if name not in (*CORRUPTIONS, 'occlusion', 'shuffle'):
            raise ValueError(f'Perturb(name={name!r}): choose among {", ".join(CORRUPTIONS)}, occlusion, shuffle')
        if name != 'occlusion' and level != int(level):
            raise ValueError(f'Perturb(name={name!r}, level={level}): expected a whole number')

    def transform(self, results: dict) -> dict:
        image = results['img']
        generator = image_generator(image, self.seed, zlib.crc32(self.name.encode()), round(1000 * self.level))
        if self.name == 'occlusion':
            results['img'] = occlude_patches(image, self.level, generator)
        elif self.name == 'shuffle':
            results['img'] = shuffle_patches(image, int(self.level), generator)
        else:
            results['img'] = corrupt(image, self.name, int(self.level), generator)
        return results


def image_generator(image: np.ndarray, *entropy: int) -> np.random.Generator:
    """Random generator that depends on the content of an image, and on additional non-negative numbers."""
    return np.random.default_rng([zlib.crc32(np.ascontiguousarray(image).data), *entropy])


def occlude_patches(image: np.ndarray, fraction: float, generator: np.random.Generator) -> np.ndarray:
    """Blacken a fraction of the patches of an image, uint8, (H, W, C).

    After Naseer et al., Intriguing Properties of Vision Transformers.
    """
    grid = OCCLUSION_GRID
    hidden = np.zeros(grid * grid, dtype=bool)
    hidden[generator.permutation(grid * grid)[: round(fraction * grid * grid)]] = True
    # Patch of each row and column of pixels.
    rows, columns = (np.arange(side) * grid // side for side in image.shape[:2])
    return np.where(hidden.reshape(grid, grid)[rows][:, columns, None], np.uint8(0), image)


def shuffle_patches(image: np.ndarray, grid: int, generator: np.random.Generator) -> np.ndarray:
    """Randomly permute the patches of an image, uint8, (H, W, C), in a regular grid of ``grid`` rows and columns.

    Pixels beyond the last whole patch of a side stay where they are.
    """
    height, width = (side // grid for side in image.shape[:2])
    inner = image[: height * grid, : width * grid]
    # (grid * height, grid * width, C) -> (grid ** 2, height, width, C)
    patches = inner.reshape(grid, height, grid, width, -1).swapaxes(1, 2).reshape(grid * grid, height, width, -1)
    shuffled = patches[generator.permutation(grid * grid)].reshape(grid, grid, height, width, -1).swapaxes(1, 2)
    result = image.copy()
    result[: height * grid, : width * grid] = shuffled.reshape(inner.shape)
    return result
