"""Pictures that are many times longer than wide."""

import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS


@TRANSFORMS.register_module()
class TrimLongSide(BaseTransform):
    """Cut the ends off very long pictures, before their shorter side is resized and their centre is cropped.

    A strip of 60,000 x 1 pixels would else be enlarged to 15 million x 256. What remains is centred and holds the crop
    with all that the filters of resizing reach, so that the crop stays the same, up to the rounding of its position.

    **Required Keys:** ``img`` (uint8, shape (H, W, C))

    **Modified Keys:** ``img``, ``img_shape``

    Args:
        ratio (int): Length that remains, in shorter sides; at least 8, as Lanczos reaches three to either side.
            Defaults to 8.
    """

    def __init__(self, ratio: int = 8) -> None:
        if ratio < 8:
            raise ValueError(f'TrimLongSide(ratio={ratio}): expected at least 8')
        self.ratio = ratio

    def transform(self, results: dict) -> dict:
        image = results['img']
        longest = self.ratio * min(image.shape[:2])
        top, left = (max(0, (side - longest) // 2) for side in image.shape[:2])
        image = np.ascontiguousarray(image[top : len(image) - top, left : image.shape[1] - left])
        results.update(img=image, img_shape=image.shape[:2])
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(ratio={self.ratio})'
