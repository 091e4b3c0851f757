"""Pictures with label maps."""

import os
from pathlib import Path

from mmdet.datasets import ADE20KSegDataset, BaseSegDataset
from mmpretrain.registry import DATASETS

from mm_sop.datasets.unlabelled_images import list_images


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
        records = super().load_data_list() if self.ann_file else self._list_folder()
        if not records:
            raise FileNotFoundError(f'no pictures *{self.img_suffix} below {self.data_prefix["img_path"]}')
        missing = [record['seg_map_path'] for record in records if not Path(record['seg_map_path']).is_file()]
        if missing:
            raise FileNotFoundError(
                f'{len(missing)} of {len(records)} pictures have no label map: {", ".join(missing[:3])} ...'
            )
        return records

    def _list_folder(self) -> list[dict]:
        """As ``BaseSegDataset`` does it, but past links that lead nowhere, and saying what is left out."""
        pictures, maps = (self.data_prefix[key] for key in ('img_path', 'seg_map_path'))
        try:
            paths = sorted(list_images(pictures, [self.img_suffix.lower()]))
        except ValueError:
            return []
        stems = [os.path.relpath(path, pictures)[: -len(self.img_suffix)] for path in paths]
        return [
            dict(img_path=path, seg_map_path=os.path.join(maps, stem + self.seg_map_suffix), label_map=self.label_map)
            for path, stem in zip(paths, stems, strict=True)
        ]


@DATASETS.register_module()
class ADE20KImages(SegmentationImages):
    """The 150 classes of ADE20K as in the scene parsing challenge, label 0 being no class.

    Args:
        **kwargs: Arguments of :class:`SegmentationImages`.
    """

    METAINFO = ADE20KSegDataset.METAINFO
