"""Labeled data: datasets in their published layouts, their labels, and subsets of them."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.dataset import BaseDataset
from torch import Tensor

from mm_sop.datasets.labeled.arrays import CIFAR10Images, CIFAR100Images, STL10Images
from mm_sop.datasets.labeled.folders import LabeledImages, check_classes, rows_of_list
from mm_sop.datasets.semantic_pairs import image_info
from mm_sop.datasets.transforms.evaluation import EvaluationTransform
from mm_sop.utils.failures import UserError

LAYOUTS = (
    'classes/{bank,seen,test}.json (photo composites), train/<class>/ and val/<class>/ (ImageNet), '
    'cifar-10-batches-py/, cifar-100-python/, or train_X.bin (stl10_binary)'
)

_ARRAYS = {'cifar-10-batches-py': CIFAR10Images, 'cifar-100-python': CIFAR100Images, 'train_X.bin': STL10Images}

SUBSET_LISTS = {'1%': '1percent.txt', '10%': '10percent.txt'}
"""SimCLR's file lists, by fraction of the labels."""


class MissingDataError(UserError, FileNotFoundError):
    """The data of a protocol is missing; the message says in one line what is expected where."""


def find_classification(folder: str | Path, transform: EvaluationTransform) -> dict[str, BaseDataset]:
    """Find the labeled training set ``train`` and the test sets in a folder in one of :data:`LAYOUTS`.

    Raises:
        MissingDataError: The folder has none of the layouts.
        ValueError: Training and test sets have different classes.
    """
    folder, steps = Path(folder), transform.steps
    marker = next((name for name in _ARRAYS if (folder / name).exists()), None)
    if (folder / 'classes/bank.json').is_file():
        names = dict(train='bank', seen='seen', test='test')
        found = {name: LabeledImages(str(folder / 'classes' / part), steps) for name, part in names.items()}
    elif (folder / 'train').is_dir() and (folder / 'val').is_dir():
        train = LabeledImages(str(folder / 'train'), steps)
        found = dict(train=train, val=_find_validation(folder, train.metainfo['classes'], transform))
    elif marker:
        settings: dict[str, Any] = dict(data_root=str(folder), labeled=True, pipeline=transform.array_steps)
        found = {name: _ARRAYS[marker](split=name, **settings) for name in ('train', 'test')}
    else:
        raise MissingDataError(f'{folder} has no labeled images: expected {LAYOUTS}')
    try:
        check_classes(found)
    except ValueError as error:
        raise ValueError(f'{folder}: {error}') from None
    return found


def _find_validation(folder: Path, classes: Sequence[str], transform: EvaluationTransform) -> LabeledImages:
    """ImageNet's validation images: in class folders, or in one folder, as they are distributed."""
    if any(path.is_dir() for path in (folder / 'val').iterdir()):
        return LabeledImages(str(folder / 'val'), transform.steps)
    labels = folder / 'meta/val.txt'
    if not labels.is_file():
        raise MissingDataError(
            f'{folder / "val"} has no class folders: expected val/<class>/, or {labels} with a file name and the '
            'number of its class in each line'
        )
    return LabeledImages(str(folder / 'val'), transform.steps, labels=str(labels), metainfo=dict(classes=classes))


def find_subset_lists(folder: str | Path) -> dict[str, Path]:
    """Find SimCLR's file lists in a folder, by fraction of the labels."""
    return {fraction: Path(folder, name) for fraction, name in SUBSET_LISTS.items() if Path(folder, name).is_file()}


def read_subset_list(path: str | Path, dataset: BaseDataset) -> np.ndarray:
    """Rows of a dataset that a file list selects, int64, in its order.

    The list has one file name in each line, such as ``n01440764_10074.JPEG``, see :func:`rows_of_list`.

    Raises:
        FileNotFoundError: The file list does not exist.
        ValueError: It is empty, names images that the dataset lacks or that are not unique, or the dataset consists of
            arrays without file names.
    """
    files = [image_info(dataset, row).get('img_path') for row in range(len(dataset))]
    if None in files:
        raise ValueError(f'{path} chooses images by file name, which {type(dataset).__name__} does not have: move it')
    return np.array(rows_of_list(path, list(map(str, files)), dataset.data_root), dtype=np.int64)


def draw_per_class(
    labels: np.ndarray, counts: int | float, generator: np.random.Generator, spare: int = 0
) -> np.ndarray:
    """Draw images of every class; returns sorted rows.

    Args:
        labels: Class of every image, (N,).
        counts: Images of each class, or a fraction in (0, 1) of them, rounded and at least 1. A class with fewer images
            gives all but the spared ones.
        generator: Source of randomness.
        spare: Images of each class that are never drawn.
    """
    drawn = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = counts if isinstance(counts, int) else max(1, round(counts * len(rows)))
        drawn.append(generator.permutation(rows)[: min(count, max(0, len(rows) - spare))])
    return np.sort(np.concatenate(drawn))


def random_rows(total: int, count: int, seed: int) -> np.ndarray:
    """Draw rows without replacement, sorted; all of them if ``count`` is larger."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def random_subset(dataset: BaseDataset, count: int | None, seed: int) -> BaseDataset:
    """Draw images without replacement, in their order; all of them if ``count`` is None or larger."""
    if count is None or count >= len(dataset):
        return dataset
    return dataset.get_subset(random_rows(len(dataset), count, seed).tolist())


def random_views(dataset: BaseDataset, transform: EvaluationTransform) -> BaseDataset:
    """The same images in random crops of 8 to 100 % of the area, of ``transform.crop_size``, and random flips."""
    views = copy.copy(dataset)
    loading = [] if 'img' in dataset.get_data_info(0) else [dict(type='LoadImage')]
    crop = dict(type='FastRandomResizedCrop', scale=transform.crop_size, crop_ratio_range=(0.08, 1.0))
    views.pipeline = Compose([*loading, crop, dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')])
    return views


def read_labels(dataset: BaseDataset, label: str, rows: Iterable[int] | None = None) -> np.ndarray | None:
    """Read a label of all samples, or of some rows, from the annotations, without loading an image.

    Args:
        dataset: Dataset with ``get_data_info``.
        label: ``'class'`` for ``gt_label``, or the name of another integer annotation.

    Returns:
        Labels, int64, (N,), or None if a sample has none. Raises a ValueError if one is not a single integer.
    """
    key = 'gt_label' if label == 'class' else label
    values = []
    for row in range(len(dataset)) if rows is None else rows:
        values.append(dataset.get_data_info(int(row)).get(key))
        if values[-1] is None:
            return None
    labels = np.asarray(values)
    if labels.ndim != 1 or labels.dtype.kind not in 'iu':
        raise ValueError(f'k-NN needs one integer per image as {key!r}, got {values[0]!r}')
    return labels.astype(np.int64)


def class_labels(dataset: BaseDataset) -> Tensor:
    """Class of every image, int64, (N,); raises a ValueError if one has none."""
    labels = read_labels(dataset, 'class')
    if labels is None:
        raise ValueError(f'{dataset.data_root} has images without a class')
    return torch.from_numpy(labels)


def class_names(dataset: BaseDataset) -> list[str]:
    """Names of the classes of a dataset."""
    return [str(name) for name in dataset.metainfo['classes']]


def test_sets(data: Mapping[str, BaseDataset]) -> dict[str, BaseDataset]:
    """All datasets but the training set."""
    return {name: dataset for name, dataset in data.items() if name != 'train'}
