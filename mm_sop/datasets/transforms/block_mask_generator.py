"""Masks of rectangular blocks for masked image modeling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmpretrain.registry import TRANSFORMS

MAX_ATTEMPTS = 10


@TRANSFORMS.register_module()
@dataclass(eq=False)
class BlockMaskGenerator(BaseTransform):
    """Draw one random mask of patches for each global view, as iBOT and SOP do.

    Each entry of ``mask_ratio`` is jittered by up to its ``mask_ratio_jitter``, and one of the results is chosen as the
    target. Blocks of random area and aspect ratio are added until this fraction of the grid is masked. A block never
    masks more patches than are missing, and after 10 unsuitable draws in a row the mask is final, so that the masked
    fraction is at most the target.

    **Added Keys:** ``mask`` (bool array of shape (num_views, height, width), true where masked)

    Args:
        mask_ratio (float | Sequence[float]): Masked fractions to choose from, in [0, 1].
        mask_ratio_jitter (float | Sequence[float]): Maximum change of each fraction, at most the fraction itself.
        aspect (Sequence[float]): Minimum and maximum ratio of a block's height to its width; drawn uniformly on a
            logarithmic scale.
        grid (Sequence[int]): Patches of a view, (height, width).
        shape (str): ``'block'``, or ``'random'`` for single patches, of which exactly the target fraction (rounded
            down) is masked.

    Example:
        >>> generator = BlockMaskGenerator(mask_ratio=0.3, mask_ratio_jitter=0.0, shape='random')
        >>> generator({})['mask'].sum((1, 2)).tolist()
        [58, 58]
    """

    mask_ratio: float | Sequence[float] = (0.0, 0.3)
    mask_ratio_jitter: float | Sequence[float] = (0.0, 0.2)
    aspect: Sequence[float] = (0.3, 1 / 0.3)
    grid: Sequence[int] = (14, 14)
    num_views: int = 2
    shape: str = 'block'

    def __post_init__(self) -> None:
        self.aspect, self.grid = tuple(self.aspect), tuple(self.grid)
        ratios, jitters = (np.atleast_1d(given).tolist() for given in (self.mask_ratio, self.mask_ratio_jitter))
        if len(ratios) != len(jitters) or not ratios:
            raise ValueError(
                f'mask_ratio has {len(ratios)} entries and mask_ratio_jitter {len(jitters)}: give one jitter for each '
                'ratio, and at least one'
            )
        self.choices = list(zip(ratios, jitters, strict=True))
        for ratio, jitter in self.choices:
            if not 0 <= jitter <= ratio <= ratio + jitter <= 1:
                raise ValueError(
                    f'mask_ratio {ratio} with jitter {jitter} leaves the range [0, 1]: choose a smaller jitter'
                )
        if len(self.aspect) != 2 or not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f'aspect={self.aspect}: expected two positive numbers, the smaller first')
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f'grid={self.grid}: expected the number of patches (height, width)')
        if self.num_views < 1:
            raise ValueError(f'num_views={self.num_views}: expected at least 1')
        if self.shape not in ('block', 'random'):
            raise ValueError(f"shape='{self.shape}': expected 'block' or 'random'")
        self.log_aspect = [math.log(ratio) for ratio in self.aspect]
        self.smallest_area = (min(self.grid) // 3) ** 2

    def transform(self, results: dict) -> dict:
        results['mask'] = self.draw_masks()
        return results

    @cache_randomness
    def draw_masks(self) -> np.ndarray:
        """Draw the masks of one image, bool, (num_views, height, width)."""
        masks = np.zeros((self.num_views, *self.grid), dtype=bool)
        for mask in masks:
            draws = np.random.random(len(self.choices) + 1).tolist()
            choice = int(draws[-1] * len(self.choices))
            ratio, jitter = self.choices[choice]
            target = (ratio + (2 * draws[choice] - 1) * jitter) * mask.size
            if self.shape == 'random':
                mask.ravel()[np.random.permutation(mask.size)[: int(target)]] = True
                continue
            masked, added = 0, 1
            while masked < target and added:
                added = self._add_block(mask, target - masked)
                masked += added
        return masks

    def _add_block(self, mask: np.ndarray, remaining: float) -> int:
        """Mask one more block and return the number of newly masked patches, 0 if no suitable one was drawn."""
        height, width = self.grid
        # All draws at once, because calling NumPy takes longer than drawing.
        for size, shape, row, column in np.random.random((MAX_ATTEMPTS, 4)).tolist():
            area = self.smallest_area + size * (remaining - self.smallest_area)
            aspect = math.exp(self.log_aspect[0] + shape * (self.log_aspect[1] - self.log_aspect[0]))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < h < height and 0 < w < width):
                continue
            top, left = int(row * (height - h + 1)), int(column * (width - w + 1))
            block = mask[top : top + h, left : left + w]
            added = h * w - np.count_nonzero(block)
            if 0 < added <= remaining:
                block[:] = True
                return added
        return 0
