"""Pictures of a size of their own, up to a limit."""

import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from PIL import Image


@TRANSFORMS.register_module()
class FitWithin(BaseTransform):
    """Shrink a picture so that its longer side fits, and cut a box out of it where the sample has one.

    Smaller pictures keep their size. A box is shown at the scale of its whole picture, as in the revisited Oxford and
    Paris benchmark.

    **Required Keys:** ``img`` (uint8, shape (H, W, C)); optional ``box`` (x1, y1, x2, y2 in pixels)

    **Modified Keys:** ``img``, ``img_shape``

    Args:
        max_side (int): Longest side.
    """

    def __init__(self, max_side: int) -> None:
        if max_side < 1:
            raise ValueError(f'FitWithin(max_side={max_side}): expected a positive number of pixels')
        self.max_side = max_side

    def transform(self, results: dict) -> dict:
        image = results['img']
        factor = min(1.0, self.max_side / max(image.shape[:2]))
        if 'box' in results:
            image = _cut(image, results['box'], results.get('img_path'))
        if factor < 1:
            size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        results.update(img=np.ascontiguousarray(image), img_shape=image.shape[:2])
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(max_side={self.max_side})'


def _cut(image, box, path):
    left, top, right, bottom = (max(round(value), 0) for value in box)
    cut = image[top:bottom, left:right]
    if not cut.size:
        raise ValueError(f'box {tuple(box)} of {path} has no pixel in a picture of {image.shape[1]} x {image.shape[0]}')
    return cut
