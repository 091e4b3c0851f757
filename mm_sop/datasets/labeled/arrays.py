"""Datasets that store images of one size as arrays: CIFAR-10, CIFAR-100 and STL-10."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset
from mmpretrain.datasets import CIFAR10, CIFAR100
from mmpretrain.registry import DATASETS

# Of STL-10
_SHAPE = (3, 96, 96)
_BYTES = 3 * 96 * 96
_SPLITS = ('train', 'test', 'unlabeled')


class ImageArrays(BaseDataset):
    """Base of datasets whose samples hold an array, as if :class:`LoadImage` had loaded it.

    Images are BGR, as the color transforms expect, so the data preprocessor needs ``to_rgb=True``. With ``labeled``,
    samples have a ``gt_label``; the other arguments are those of the dataset that reads the arrays.
    """

    def __init__(self, *args, labeled: bool = False, **kwargs) -> None:
        # Read by `load_data_list`, which the parent calls.
        self.labeled = labeled
        super().__init__(*args, **kwargs)

    def read_rgb(self, info: dict) -> np.ndarray:
        """Take what describes the image out of a sample and return its RGB image, uint8, (H, W, 3)."""
        return info.pop('img')

    def get_data_info(self, idx: int) -> dict:
        """``img`` (BGR, uint8, (H, W, 3)), ``img_shape``, ``ori_shape``, ``sample_idx`` and perhaps ``gt_label``."""
        info = super().get_data_info(idx)
        image = np.ascontiguousarray(self.read_rgb(info)[..., ::-1])
        return dict(info, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])


class _CIFARImages(ImageArrays):
    def load_data_list(self) -> list[dict]:
        """Read images and, if asked for, labels."""
        keys = ('img', 'gt_label') if self.labeled else ('img',)
        return [{key: item[key] for key in keys} for item in super().load_data_list()]


@DATASETS.register_module()
class CIFAR10Images(_CIFARImages, CIFAR10):
    """MMPretrain's CIFAR-10 without labels, for the pipelines that otherwise follow :class:`LoadImage`.

    Images are BGR, as the color transforms expect, so the data preprocessor needs ``to_rgb=True``. They are
    downloaded unless ``download=False``.

    Args:
        labeled (bool): Whether samples have a ``gt_label``, for evaluation.
        **kwargs: Arguments of MMPretrain's dataset, such as ``data_root``, ``split`` and ``pipeline``.
    """


@DATASETS.register_module()
class CIFAR100Images(_CIFARImages, CIFAR100):
    """MMPretrain's CIFAR-100, like :class:`CIFAR10Images`, with its 100 fine classes."""


@DATASETS.register_module()
class STL10Images(ImageArrays):
    """STL-10 in its binary format: images of 96 pixels for the pipelines that otherwise follow :class:`LoadImage`.

    Images are BGR, as the color transforms expect, so the data preprocessor needs ``to_rgb=True``. Each one is read
    from the file when it is needed, so that 2.8 GB of unlabeled images take no memory. Download
    ``stl10_binary.tar.gz`` from the authors' page and unpack it.

    Args:
        data_root (str): Folder ``stl10_binary`` with ``train_X.bin``, ``unlabeled_X.bin`` and so on.
        split (str): ``'train'`` (5,000), ``'test'`` (8,000), ``'unlabeled'`` (100,000), or several joined by ``'+'``.
            Defaults to ``'train+unlabeled'``, the usual set for pretraining.
        labeled (bool): Whether samples have a ``gt_label``, for evaluation.
        **kwargs: Other arguments of MMEngine's dataset, such as ``indices`` and ``lazy_init``.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The split is unknown or unlabeled, or a file has a wrong size.
    """

    METAINFO = dict(dataset_type='stl10')

    def __init__(
        self,
        data_root: str | Path,
        split: str = 'train+unlabeled',
        labeled: bool = False,
        pipeline: Sequence[dict | Callable] = (),
        **kwargs,
    ) -> None:
        self.splits = split.split('+')
        if not set(self.splits) <= set(_SPLITS):
            raise ValueError(f"split={split!r} of STL10Images: expected {', '.join(_SPLITS)}, or some joined by '+'")
        if labeled and 'unlabeled' in self.splits:
            raise ValueError(f"STL10Images(split='{split}', labeled=True): the unlabeled images have no labels")
        super().__init__(data_root=str(data_root), data_prefix={}, pipeline=pipeline, labeled=labeled, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List file, row and perhaps label of every image."""
        items = []
        for split in self.splits:
            path = self._find(f'{split}_X.bin')
            count, rest = divmod(path.stat().st_size, _BYTES)
            if rest or not count:
                raise ValueError(f'{path} has {path.stat().st_size:,} bytes, not a multiple of {_BYTES:,}')
            items += [dict(file=path.name, row=row) for row in range(count)]
            if not self.labeled:
                continue
            labels = np.fromfile(self._find(f'{split}_y.bin'), np.uint8)
            if len(labels) != count:
                raise ValueError(f'{split}_y.bin of {self.data_root} has {len(labels)} labels for {count} images')
            for item, label in zip(items[-count:], labels.tolist(), strict=True):
                item['gt_label'] = label - 1
            self._metainfo.setdefault('classes', tuple(self._find('class_names.txt').read_text().split()))
        return items

    def _find(self, name: str) -> Path:
        path = Path(self.data_root, name)
        if not path.is_file():
            raise FileNotFoundError(f'no {path.absolute()}: `data_root` must be the unpacked folder stl10_binary')
        return path

    def read_rgb(self, info: dict) -> np.ndarray:
        """Read the image from its file."""
        path, start = Path(self.data_root, info.pop('file')), info.pop('row') * _BYTES
        # Stored as channel, column, row.
        return np.fromfile(path, np.uint8, _BYTES, offset=start).reshape(_SHAPE).transpose(2, 1, 0)
