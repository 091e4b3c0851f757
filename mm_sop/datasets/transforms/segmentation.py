"""Loading of label maps."""

from pathlib import Path

import numpy as np
from mmdet.datasets.transforms import LoadAnnotations
from mmpretrain.registry import TRANSFORMS

from mm_sop.datasets.transforms.loading import UnreadableImageError, read_geometry, turn_upright


@TRANSFORMS.register_module()
class LoadSegmentationMap(LoadAnnotations):
    """Load the label map of a picture, turn it with its picture, and check that it fits.

    Pictures are turned upright as their EXIF orientation says. A map with an orientation of its own is turned by that
    one, a map of the picture's stored size by that of the picture, and a map of the upright size is left as it is.
    Where both sizes are the same, ``turn_with_picture`` has to say which was labelled.

    **Required Keys:** ``img_path``, ``seg_map_path``, ``ori_shape``

    **Added Keys:** ``gt_seg_map`` (uint8 array of shape (H, W)), ``ignore_index``

    Args:
        num_classes (int): Number of classes, at most 255.
        reduce_zero_label (bool): Whether label 0 is no class, as in ADE20K: it becomes ``ignore_index`` and the others
            move down by one. Defaults to False.
        ignore_index (int): Label of pixels that do not count. Defaults to 255.
        turn_with_picture (bool, optional): Whether maps without an orientation of their own show stored pictures (True)
            or upright ones (False). Defaults to None: found out by their size, and refused where that says nothing.

    Raises:
        UnreadableImageError: The file is damaged.
        ValueError: Size, orientation or labels do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        reduce_zero_label: bool = False,
        ignore_index: int = 255,
        turn_with_picture: bool | None = None,
    ) -> None:
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
        self.turn_with_picture = turn_with_picture

    def transform(self, results: dict) -> dict:
        """Load and check.

        Args:
            results (dict): With ``img_path``, ``seg_map_path`` and ``ori_shape``.

        Returns:
            dict: With ``gt_seg_map`` and ``ignore_index``.
        """
        path = results['seg_map_path']
        size, orientation = read_geometry(path)
        try:
            results = super().transform(results)
        except (OSError, SyntaxError) as error:
            raise UnreadableImageError(path, str(error)) from error
        if orientation == 1:
            orientation = self._orientation_of_picture(results, size)
        elif Path(path).suffix.lower() in ('.tif', '.tiff'):
            orientation = 1  # Pillow has turned it.
        results['gt_seg_map'] = turn_upright(results['gt_seg_map'], orientation)
        return self._check(results)

    def _orientation_of_picture(self, results: dict, size: tuple[int, int]) -> int:
        """EXIF orientation by which a map without one has to be turned."""
        upright, orientation = read_geometry(results['img_path'])
        if orientation == 1 or self.turn_with_picture is False:
            return 1
        if self.turn_with_picture:
            return orientation
        stored = upright[::-1] if orientation >= 5 else upright
        if stored == upright == size:
            raise ValueError(
                f'{results["img_path"]} has the EXIF orientation {orientation} and {results["seg_map_path"]} has none: '
                'is the label map of the stored picture, or of the upright one? Set turn_with_picture=True or False of '
                'LoadSegmentationMap'
            )
        return orientation if size == stored else 1

    def _check(self, results: dict) -> dict:
        path = results['seg_map_path']
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
