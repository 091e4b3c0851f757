"""STL-10 for self-supervised training and its evaluation."""

from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset
from mmpretrain.registry import DATASETS

SIDE = 96
_PICTURE_BYTES = 3 * SIDE * SIDE
_SPLITS = ('train', 'test', 'unlabeled')


@DATASETS.register_module()
class STL10Pictures(BaseDataset):
    """STL-10 in its binary format: pictures of 96 pixels for the pipelines that otherwise follow ``LoadPicture``.

    Pictures are BGR, as the colour transforms expect, so the data preprocessor needs ``to_rgb=True``. They are read
    from the file one by one: 2.8 GB of unlabelled pictures take no memory. Get ``stl10_binary.tar.gz`` from the
    authors' page and unpack it.

    Args:
        data_root (str): Folder ``stl10_binary`` with ``train_X.bin``, ``unlabeled_X.bin`` and so on.
        split (str): ``'train'`` (5,000), ``'test'`` (8,000), ``'unlabeled'`` (100,000), or several joined by ``'+'``,
            such as ``'train+unlabeled'``, the default, on which one pretrains.
        labelled (bool): Whether samples have a ``gt_label``, for evaluation. Defaults to False.
        pipeline (Sequence[dict | callable]): Transforms. Defaults to ().
        **kwargs: Further arguments of MMEngine's data set, such as ``indices`` and ``lazy_init``.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The split is unknown or unlabelled, or a file has a wrong size.
    """

    METAINFO = dict(dataset_type='stl10')

    def __init__(
        self, data_root: str, split: str = 'train+unlabeled', labelled: bool = False, pipeline=(), **kwargs
    ) -> None:
        self.splits = split.split('+')
        if not set(self.splits) <= set(_SPLITS):
            raise ValueError(f"split={split!r} of STL10Pictures: expected {', '.join(_SPLITS)}, or some joined by '+'")
        if labelled and 'unlabeled' in self.splits:
            raise ValueError(f"STL10Pictures(split='{split}', labelled=True): the unlabelled pictures have no labels")
        self.labelled = labelled
        super().__init__(data_root=str(data_root), data_prefix={}, pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List file, position and perhaps label of every picture."""
        items = []
        for split in self.splits:
            path = self._find(f'{split}_X.bin')
            count, rest = divmod(path.stat().st_size, _PICTURE_BYTES)
            if rest or not count:
                raise ValueError(f'{path} has {path.stat().st_size:,} bytes, not a multiple of {_PICTURE_BYTES:,}')
            items += [dict(file=path.name, row=row) for row in range(count)]
            if self.labelled:
                self._add_labels(items[-count:], split)
        return items

    def _add_labels(self, items: list[dict], split: str) -> None:
        labels = np.fromfile(self._find(f'{split}_y.bin'), np.uint8)
        if len(labels) != len(items):
            raise ValueError(f'{split}_y.bin of {self.data_root} has {len(labels)} labels for {len(items)} pictures')
        for item, label in zip(items, labels.tolist(), strict=True):
            item['gt_label'] = label - 1
        self._metainfo.setdefault('classes', tuple(self._find('class_names.txt').read_text().split()))

    def _find(self, name: str) -> Path:
        path = Path(self.data_root, name)
        if not path.is_file():
            raise FileNotFoundError(f'no {path.absolute()}: `data_root` is to be the unpacked folder stl10_binary')
        return path

    def get_data_info(self, idx: int) -> dict:
        """One sample.

        Args:
            idx: Index.

        Returns:
            ``img`` (BGR, uint8, (96, 96, 3)), ``img_shape``, ``ori_shape``, ``sample_idx`` and perhaps ``gt_label``.
        """
        info = super().get_data_info(idx)
        path, start = Path(self.data_root, info.pop('file')), info.pop('row') * _PICTURE_BYTES
        # Stored as channel, column, row; RGB.
        stored = np.fromfile(path, np.uint8, _PICTURE_BYTES, offset=start).reshape(3, SIDE, SIDE)
        image = np.ascontiguousarray(stored.transpose(2, 1, 0)[..., ::-1])
        return dict(info, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
