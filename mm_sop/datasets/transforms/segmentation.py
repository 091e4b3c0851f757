"""Loading of label maps."""

from pathlib import Path

import numpy as np
from mmcv.transforms import LoadAnnotations
from mmpretrain.registry import TRANSFORMS

from mm_sop.datasets.transforms.loading import UnreadableImageError, read_geometry, turn_upright


@TRANSFORMS.register_module()
class LoadSegmentationMap(LoadAnnotations):
    """Load the label map of an image, turn it like the image, and check that it fits.

    :class:`LoadImage` applies the EXIF orientation. A label map with an EXIF orientation is turned by its orientation,
    a map of the stored image's size by that of the image, and a map of the upright image's size stays as it is. Where
    both sizes are equal, ``turn_with_image`` has to say which image was labeled.

    **Required Keys:** ``img_path``, ``seg_map_path``, ``ori_shape``; optional ``label_map`` (new labels by old)
    **Added Keys:** ``gt_seg_map`` (uint8 array of shape (H, W)), ``ignore_index``

    Args:
        num_classes (int): Number of classes, at most 255.
        reduce_zero_label (bool): Whether label 0 stands for no class, as in ADE20K: it becomes ``ignore_index``, and
            all other labels decrease by one.
        ignore_index (int): Label of pixels that do not count.
        turn_with_image (bool, optional): Whether label maps without an EXIF orientation show stored images (True) or
            upright ones (False). Defaults to None: detected from their size, and refused where the size is ambiguous.

    Raises:
        UnreadableImageError: The file is damaged.
        ValueError: Size, orientation or labels do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        reduce_zero_label: bool = False,
        ignore_index: int = 255,
        turn_with_image: bool | None = None,
    ) -> None:
        # OpenCV would turn palettes into colors.
        super().__init__(with_bbox=False, with_label=False, with_seg=True, imdecode_backend='pillow')
        self.num_classes = num_classes
        self.reduce_zero_label = reduce_zero_label
        self.ignore_index = ignore_index
        self.turn_with_image = turn_with_image

    def transform(self, results: dict) -> dict:
        path = results['seg_map_path']
        size, orientation = read_geometry(path)
        try:
            results = super().transform(results)
        except (OSError, SyntaxError) as error:
            raise UnreadableImageError(path, str(error)) from error
        if orientation == 1:
            orientation = self._orientation_of_image(results, size)
        elif Path(path).suffix.lower() in ('.tif', '.tiff'):
            orientation = 1  # Pillow has turned it.
        labels = self._renumber(results['gt_seg_map'], results.get('label_map') or {})
        labels = turn_upright(labels, orientation)
        if labels.shape != tuple(results['ori_shape'][:2]):
            shapes = f'{labels.shape}, its image {results["ori_shape"]}'
            raise ValueError(f'{path} has the shape {shapes}: expected one label for each pixel')
        unexpected = np.setdiff1d(labels, [*range(self.num_classes), self.ignore_index])
        if len(unexpected):
            raise ValueError(
                f'{path} has the labels {unexpected[:5].tolist()}, expected 0 ... {self.num_classes - 1} or '
                f'{self.ignore_index}: check num_classes={self.num_classes} and '
                f'reduce_zero_label={self.reduce_zero_label}'
            )
        results.update(gt_seg_map=labels, ignore_index=self.ignore_index)
        return results

    def _orientation_of_image(self, results: dict, size: tuple[int, int]) -> int:
        """EXIF orientation to apply to a label map that has none."""
        upright, orientation = read_geometry(results['img_path'])
        if orientation == 1 or self.turn_with_image is False:
            return 1
        if self.turn_with_image:
            return orientation
        stored = upright[::-1] if orientation >= 5 else upright
        if stored == upright == size:
            raise ValueError(
                f'{results["img_path"]} has the EXIF orientation {orientation} and {results["seg_map_path"]} has none: '
                'is the label map of the stored image, or of the upright one? Set turn_with_image=True or False of '
                'LoadSegmentationMap'
            )
        return orientation if size == stored else 1

    def _renumber(self, labels: np.ndarray, label_map: dict[int, int]) -> np.ndarray:
        if self.reduce_zero_label:
            # Via `ignore_index`, because 0 - 1 is out of the range of uint8.
            labels[labels == 0] = self.ignore_index
            labels = labels - 1
            labels[labels == self.ignore_index - 1] = self.ignore_index
        before = labels.copy() if label_map else labels
        for old, new in label_map.items():
            labels[before == old] = new
        return labels

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_classes={self.num_classes}, reduce_zero_label={self.reduce_zero_label}, '
            f'ignore_index={self.ignore_index}, turn_with_image={self.turn_with_image})'
        )
