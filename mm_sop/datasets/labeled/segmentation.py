"""Images with label maps."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.fileio import list_from_file
from mmpretrain.registry import DATASETS

from mm_sop.datasets.image_files import list_images, shorten


@DATASETS.register_module()
class SegmentationImages(BaseDataset):
    """Images and label maps of the same names, in two folders.

    Takes the arguments of MMDetection's ``BaseSegDataset`` and yields the same samples, without MMDetection. In
    addition, it detects missing label maps when the dataset is built, not when a worker loads them.

    Args:
        data_prefix (Mapping[str, str]): Folders ``img_path`` and ``seg_map_path`` below ``data_root``.
        ann_file (str): Text file with one image name per line, without suffix. Defaults to '', all images.
        metainfo (Mapping, optional): ``classes`` and ``palette``, by default those of the dataset's type; a missing
            palette is drawn at random.
        use_label_map (bool): Whether ``classes`` of ``metainfo`` renumber the labels of the dataset's type; labels of
            other classes become 0.
        backend_args (dict, optional): Arguments of MMEngine's file backend for ``ann_file``.
        test_mode (bool): Whether the dataset is used for evaluation, which needs ``classes``.
        **kwargs: Other arguments of MMEngine's ``BaseDataset``, such as ``indices``.

    Raises:
        FileNotFoundError: A folder, ``ann_file`` or a label map does not exist, or there are no images.
        ValueError: Classes are missing or unknown, or there are fewer colors than classes.
    """

    def __init__(
        self,
        data_root: str | None = None,
        data_prefix: Mapping[str, str] = {'img_path': '', 'seg_map_path': ''},
        ann_file: str = '',
        img_suffix: str = '.jpg',
        seg_map_suffix: str = '.png',
        metainfo: Mapping | None = None,
        pipeline: Sequence[dict | Callable] = (),
        use_label_map: bool = False,
        backend_args: dict | None = None,
        test_mode: bool = False,
        lazy_init: bool = False,
        **kwargs,
    ) -> None:
        self.img_suffix = img_suffix
        self.seg_map_suffix = seg_map_suffix
        self.backend_args = backend_args
        defaults = self.default_metainfo()
        given = dict(data_root=data_root, data_prefix=dict(data_prefix), pipeline=list(pipeline), test_mode=test_mode)
        super().__init__(ann_file, {**defaults, **(metainfo or {})}, lazy_init=True, **given, **kwargs)
        classes, known = (list(info.get('classes') or ()) for info in (self._metainfo, defaults))
        if test_mode and not classes:
            raise ValueError(f'{type(self).__name__}: name the classes of test data with metainfo=dict(classes=[...])')
        self.label_map = _map_labels(known, classes) if use_label_map and known and classes else None
        palette = self._metainfo.get('palette')
        if not palette:  # the same colors each time
            palette = np.random.RandomState(42).randint(0, 255, size=(len(classes), 3)).tolist()
        if len(palette) < len(classes):
            raise ValueError(f'metainfo has {len(palette)} colors for {len(classes)} classes: give one each')
        if self.label_map and len(palette) == len(known):
            palette = [palette[known.index(name)] for name in classes]
        self._metainfo.update(label_map=self.label_map, palette=palette)
        if not lazy_init:
            self.full_init()

    @classmethod
    def default_metainfo(cls) -> Mapping:
        """Classes and palette of the dataset's type."""
        return cls.METAINFO

    def load_data_list(self) -> list[dict]:
        """List ``img_path``, ``seg_map_path`` and ``label_map`` of every image."""
        for key, folder in self.data_prefix.items():
            if not Path(folder).is_dir():
                raise FileNotFoundError(f'{folder} is not a folder: data_root and data_prefix.{key} must lead to one')
        images, maps, paths = self.data_prefix['img_path'], self.data_prefix['seg_map_path'], []
        if self.ann_file:
            if not Path(self.ann_file).is_file():
                raise FileNotFoundError(f'no file list {self.ann_file}: correct ann_file')
            names = [line.strip() for line in list_from_file(self.ann_file, backend_args=self.backend_args)]
            paths = [str(Path(images, name + self.img_suffix)) for name in names]
        else:
            with suppress(ValueError):  # there are none
                paths = sorted(list_images(images, [self.img_suffix.lower()]))
        if not paths:
            raise FileNotFoundError(f'no images *{self.img_suffix} below {images}')
        stems = [os.path.relpath(path, images)[: -len(self.img_suffix)] for path in paths]
        seg_maps = [Path(maps, stem + self.seg_map_suffix) for stem in stems]
        missing = [str(path) for path in seg_maps if not path.is_file()]
        if missing:
            raise FileNotFoundError(f'{len(missing)} of {len(paths)} images have no label map: {shorten(missing, 3)}')
        return [
            dict(img_path=path, seg_map_path=str(seg_map), label_map=self.label_map)
            for path, seg_map in zip(paths, seg_maps, strict=True)
        ]


@DATASETS.register_module()
class ADE20KImages(SegmentationImages):
    """The 150 classes of ADE20K as in the scene parsing challenge, whose label 0 stands for no class."""

    @classmethod
    def default_metainfo(cls) -> Mapping:
        """Classes and palette as MMDetection has them."""
        from mmdet.datasets import ADE20KSegDataset

        return ADE20KSegDataset.METAINFO


def _map_labels(known: list[str], wanted: list[str]) -> dict[int, int] | None:
    """New label of each known class, or None if nothing changes."""
    if known == wanted:
        return None
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f'classes {unknown} are not among the {len(known)} classes of the dataset')
    return {label: wanted.index(name) if name in wanted else 0 for label, name in enumerate(known)}
