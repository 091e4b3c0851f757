"""Loading of label maps."""

import numpy as np
from mmdet.datasets.transforms import LoadAnnotations
from mmpretrain.registry import TRANSFORMS

from mm_sop.datasets.transforms.loading import UnreadableImageError


@TRANSFORMS.register_module()
class LoadSegmentationMap(LoadAnnotations):
    """Load the label map of a picture and check that it fits.

    **Required Keys:** ``seg_map_path``, ``ori_shape``

    **Added Keys:** ``gt_seg_map`` (uint8 array of shape (H, W)), ``ignore_index``

    Args:
        num_classes (int): Number of classes, at most 255.
        reduce_zero_label (bool): Whether label 0 is no class, as in ADE20K: it becomes ``ignore_index`` and the others
            move down by one. Defaults to False.
        ignore_index (int): Label of pixels that do not count. Defaults to 255.

    Raises:
        UnreadableImageError: The file is damaged.
        ValueError: Size or labels do not fit.
    """

    def __init__(self, num_classes: int, reduce_zero_label: bool = False, ignore_index: int = 255) -> None:
        super().__init__(
            with_bbox=False,
            with_label=False,
            with_seg=True,
            reduce_zero_label=reduce_zero_label,
            ignore_index=ignore_index,
            # OpenCV would turn palettes into colours.
            imdecode_backend='pillow',
        )
        self.num_classes = num_classes

    def transform(self, results: dict) -> dict:
        """Load and check.

        Args:
            results (dict): With ``seg_map_path`` and ``ori_shape``.

        Returns:
            dict: With ``gt_seg_map`` and ``ignore_index``.
        """
        path = results['seg_map_path']
        try:
            results = super().transform(results)
        except (OSError, SyntaxError) as error:
            raise UnreadableImageError(path, str(error)) from error
        labels = results['gt_seg_map']
        if labels.shape != tuple(results['ori_shape'][:2]):
            raise ValueError(
                f'{path} has the shape {labels.shape}, its picture {results["ori_shape"]}: expected one label for each '
                'pixel'
            )
        strange = np.setdiff1d(labels, [*range(self.num_classes), self.ignore_index])
        if len(strange):
            raise ValueError(
                f'{path} has the labels {strange[:5].tolist()}, expected 0 ... {self.num_classes - 1} or '
                f'{self.ignore_index}: check num_classes={self.num_classes} and '
                f'reduce_zero_label={self.reduce_zero_label}'
            )
        return results
