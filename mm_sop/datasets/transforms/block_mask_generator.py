"""Masks of rectangular blocks for masked image modeling."""

import math
from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmpretrain.registry import TRANSFORMS

MAX_ATTEMPTS = 10


@TRANSFORMS.register_module()
class BlockMaskGenerator(BaseTransform):
    """Draw one random mask of patches for each global view, as iBOT and SOP do.

    Each entry of ``mask_ratio`` is jittered by up to its ``mask_ratio_jitter``, and one of the results is chosen as the
    target. Blocks of random area and aspect ratio are added until this fraction of the grid is masked. A block never
    masks more patches than are missing, and after 10 unsuitable draws in a row the mask is final, so that the masked
    fraction is at most the target.

    **Added Keys:** ``mask`` (bool array of shape (num_views, height, width), true where masked)

    Args:
        mask_ratio (float | Sequence[float]): Masked fractions to choose from, in [0, 1]. Defaults to (0.0, 0.3).
        mask_ratio_jitter (float | Sequence[float]): Maximum change of each fraction, at most the fraction itself.
            Defaults to (0.0, 0.2).
        aspect (Sequence[float]): Minimum and maximum ratio of a block's height to its width; drawn uniformly on a
            logarithmic scale. Defaults to (0.3, 1 / 0.3).
        grid (Sequence[int]): Patches of a view, (height, width). Defaults to (14, 14).
        num_views (int): Number of masks. Defaults to 2.
        shape (str): ``'block'``, or ``'random'`` for single patches, of which exactly the target fraction (rounded
            down) is masked. Defaults to ``'block'``.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> generator = BlockMaskGenerator(mask_ratio=0.3, mask_ratio_jitter=0.0, shape='random')
        >>> generator({})['mask'].sum((1, 2)).tolist()
        [58, 58]
    """

    def __init__(
        self,
        mask_ratio: float | Sequence[float] = (0.0, 0.3),
        mask_ratio_jitter: float | Sequence[float] = (0.0, 0.2),
        aspect: Sequence[float] = (0.3, 1 / 0.3),
        grid: Sequence[int] = (14, 14),
        num_views: int = 2,
        shape: str = 'block',
    ) -> None:
        self.mask_ratio = [mask_ratio] if isinstance(mask_ratio, int | float) else list(mask_ratio)
        self.mask_ratio_jitter = (
            [mask_ratio_jitter] if isinstance(mask_ratio_jitter, int | float) else list(mask_ratio_jitter)
        )
        self.aspect = tuple(aspect)
        self.grid = tuple(grid)
        self.num_views = num_views
        self.shape = shape
        self._check_arguments()
        self.log_aspect = [math.log(ratio) for ratio in self.aspect]
        self.smallest_area = (min(self.grid) // 3) ** 2

    def _check_arguments(self) -> None:
        if len(self.mask_ratio) != len(self.mask_ratio_jitter) or not self.mask_ratio:
            raise ValueError(
                f'mask_ratio has {len(self.mask_ratio)} entries and mask_ratio_jitter {len(self.mask_ratio_jitter)}: '
                'give one jitter for each ratio, and at least one'
            )
        for ratio, jitter in zip(self.mask_ratio, self.mask_ratio_jitter, strict=True):
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

    def transform(self, results: dict) -> dict:
        results['mask'] = self.draw_masks()
        return results

    @cache_randomness
    def draw_masks(self) -> np.ndarray:
        """Draw the masks of one image.

        Returns:
            np.ndarray: bool, shape (num_views, height, width).
        """
        masks = np.zeros((self.num_views, *self.grid), dtype=bool)
        for mask in masks:
            target = self._draw_ratio() * mask.size
            if self.shape == 'random':
                mask.ravel()[np.random.permutation(mask.size)[: int(target)]] = True
                continue
            masked, added = 0, 1
            while masked < target and added:
                added = self._add_block(mask, target - masked)
                masked += added
        return masks

    def _draw_ratio(self) -> float:
        draws = np.random.random(len(self.mask_ratio) + 1).tolist()
        choice = int(draws[-1] * len(self.mask_ratio))
        return self.mask_ratio[choice] + (2 * draws[choice] - 1) * self.mask_ratio_jitter[choice]

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

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(mask_ratio={self.mask_ratio}, mask_ratio_jitter={self.mask_ratio_jitter}, '
            f'aspect={self.aspect}, grid={self.grid}, num_views={self.num_views}, shape={self.shape!r})'
        )
