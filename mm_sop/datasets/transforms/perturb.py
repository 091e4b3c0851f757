"""Pictures made hard to recognise, always in the same way."""

import zlib

import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS

from mm_sop.datasets.transforms.corruptions import CORRUPTIONS, corrupt

OCCLUSION_GRID = 14
"""Rows and columns of the patches that are occluded."""


@TRANSFORMS.register_module()
class Perturb(BaseTransform):
    """Corrupt, occlude or shuffle a picture.

    What is drawn depends on the seed and the picture alone, not on its place in the data set.

    **Required Keys:** ``img`` (uint8 BGR image of shape (H, W, 3))

    **Modified Keys:** ``img``

    Args:
        name (str): One of :data:`~mm_sop.datasets.transforms.corruptions.CORRUPTIONS`, ``'occlusion'`` or
            ``'shuffle'``.
        level (float): Severity 1 ... 5 of a corruption, occluded share, or rows and columns of the shuffled patches.
        seed (int): Seed. Defaults to 0.

    Raises:
        ValueError: The name is unknown.
    """

    def __init__(self, name: str, level: float, seed: int = 0) -> None:
        if name not in (*CORRUPTIONS, 'occlusion', 'shuffle'):
            raise ValueError(f'Perturb(name={name!r}): choose among {", ".join(CORRUPTIONS)}, occlusion, shuffle')
        self.name = name
        self.level = level
        self.seed = seed

    def transform(self, results: dict) -> dict:
        image = results['img']
        generator = picture_generator(image, self.seed, zlib.crc32(self.name.encode()), round(1000 * self.level))
        if self.name == 'occlusion':
            results['img'] = occlude_patches(image, self.level, generator)
        elif self.name == 'shuffle':
            results['img'] = shuffle_patches(image, self.level, generator)
        else:
            results['img'] = corrupt(image, self.name, self.level, generator)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name={self.name!r}, level={self.level}, seed={self.seed})'


def picture_generator(image: np.ndarray, *entropy: int) -> np.random.Generator:
    """Generator that depends on the content of a picture.

    Args:
        image (np.ndarray): The picture.
        *entropy (int): Further non-negative numbers.
    """
    return np.random.default_rng([zlib.crc32(np.ascontiguousarray(image)), *entropy])


def occlude_patches(
    image: np.ndarray, share: float, generator: np.random.Generator, grid: int = OCCLUSION_GRID
) -> np.ndarray:
    """Blacken random patches (Naseer et al., Intriguing Properties of Vision Transformers).

    Args:
        image (np.ndarray): uint8, shape (H, W, C).
        share (float): Share of the patches, 0 ... 1.
        generator (np.random.Generator): Source of randomness.
        grid (int): Rows and columns of patches.

    Returns:
        np.ndarray: uint8, shape (H, W, C).
    """
    hidden = np.zeros(grid * grid, dtype=bool)
    hidden[generator.permutation(grid * grid)[: round(share * grid * grid)]] = True
    rows, columns = (np.arange(side) * grid // side for side in image.shape[:2])
    return np.where(hidden.reshape(grid, grid)[rows][:, columns, None], np.uint8(0), image)


def shuffle_patches(image: np.ndarray, grid: int, generator: np.random.Generator) -> np.ndarray:
    """Exchange the patches of a regular grid at random.

    Args:
        image (np.ndarray): uint8, shape (H, W, C).
        grid (int): Rows and columns of patches. What is left of sides that it does not divide stays where it is.
        generator (np.random.Generator): Source of randomness.

    Returns:
        np.ndarray: uint8, shape (H, W, C).
    """
    height, width = (side // grid for side in image.shape[:2])
    inner = image[: height * grid, : width * grid]
    patches = inner.reshape(grid, height, grid, width, -1).swapaxes(1, 2).reshape(grid * grid, height, width, -1)
    shuffled = patches[generator.permutation(grid * grid)].reshape(grid, grid, height, width, -1).swapaxes(1, 2)
    result = image.copy()
    result[: height * grid, : width * grid] = shuffled.reshape(inner.shape)
    return result
