"""Pictures with label maps."""

from pathlib import Path

from mmdet.datasets import ADE20KSegDataset, BaseSegDataset
from mmpretrain.registry import DATASETS


@DATASETS.register_module()
class SegmentationImages(BaseSegDataset):
    """MMDetection's segmentation data set, complete from the beginning.

    Every picture needs a label map of its name. That is looked at when the data set is built, not hours later when a
    worker misses a file.

    Args:
        **kwargs: Arguments of ``BaseSegDataset``: ``data_root``; ``data_prefix`` with ``img_path`` and
            ``seg_map_path``; ``metainfo`` with ``classes`` and ``palette``; ``pipeline``.

    Raises:
        FileNotFoundError: A folder or a label map does not exist, or there are no pictures.
    """

    def load_data_list(self) -> list[dict]:
        """List the pictures.

        Returns:
            ``img_path``, ``seg_map_path`` and ``label_map`` of every picture.
        """
        for key, folder in self.data_prefix.items():
            if not Path(folder).is_dir():
                raise FileNotFoundError(f'{folder} is no folder: data_root and data_prefix.{key} must lead to one')
        records = super().load_data_list()
        if not records:
            raise FileNotFoundError(f'no pictures *{self.img_suffix} below {self.data_prefix["img_path"]}')
        missing = [record['seg_map_path'] for record in records if not Path(record['seg_map_path']).is_file()]
        if missing:
            raise FileNotFoundError(
                f'{len(missing)} of {len(records)} pictures have no label map: {", ".join(missing[:3])} ...'
            )
        return records


@DATASETS.register_module()
class ADE20KImages(SegmentationImages):
    """The 150 classes of ADE20K as in the scene parsing challenge, label 0 being no class.

    Args:
        **kwargs: Arguments of :class:`SegmentationImages`.
    """

    METAINFO = ADE20KSegDataset.METAINFO
