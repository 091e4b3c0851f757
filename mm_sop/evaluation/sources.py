"""Labelled data for classification protocols, in the layouts in which they are published."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset

from mm_sop.datasets.cifar_pictures import CIFAR10Pictures, CIFAR100Pictures
from mm_sop.datasets.labelled_images import LabelledImages, check_classes
from mm_sop.datasets.listed_images import rows_of_list
from mm_sop.datasets.semantic_pairs import picture_info
from mm_sop.datasets.stl10_pictures import STL10Pictures
from mm_sop.evaluation.protocol import EvaluationTransform, MissingDataError

LAYOUTS = (
    'classes/{bank,seen,test}.json (photo composites), train/<class>/ and val/<class>/ (ImageNet), '
    'cifar-10-batches-py/, cifar-100-python/, or train_X.bin (stl10_binary)'
)

SUBSET_LISTS = {'1%': '1percent.txt', '10%': '10percent.txt'}
"""SimCLR's lists of pictures, by share of the labels."""


def find_classification(folder: str | Path, transform: EvaluationTransform) -> dict[str, BaseDataset]:
    """Find a labelled training set and its test sets.

    Args:
        folder: Folder in one of :data:`LAYOUTS`.
        transform: How pictures are prepared.

    Returns:
        ``train``, and every other name is a test set.

    Raises:
        MissingDataError: The folder has none of the layouts.
        ValueError: Training and test sets have different classes.
    """
    folder = Path(folder)
    found = _find(folder, transform)
    if found is None:
        raise MissingDataError(f'{folder} has no labelled pictures: expected {LAYOUTS}')
    try:
        check_classes(found)
    except ValueError as error:
        raise ValueError(f'{folder}: {error}') from None
    return found


def _find(folder: Path, transform: EvaluationTransform) -> dict[str, BaseDataset] | None:
    if (folder / 'classes/bank.json').is_file():
        names = dict(train='bank', seen='seen', test='test')
        return {name: LabelledImages(folder / 'classes' / part, transform.steps) for name, part in names.items()}
    if (folder / 'train').is_dir() and (folder / 'val').is_dir():
        train = LabelledImages(folder / 'train', transform.steps)
        return dict(train=train, val=_find_validation(folder, train.metainfo['classes'], transform))
    arrays = dict(labelled=True, pipeline=transform.array_steps)
    for marker, kind in (('cifar-10-batches-py', CIFAR10Pictures), ('cifar-100-python', CIFAR100Pictures)):
        if (folder / marker).is_dir():
            return {name: kind(data_root=str(folder), split=name, **arrays) for name in ('train', 'test')}
    if (folder / 'train_X.bin').is_file():
        return {name: STL10Pictures(data_root=str(folder), split=name, **arrays) for name in ('train', 'test')}
    return None


def _find_validation(folder: Path, classes: Sequence[str], transform: EvaluationTransform) -> LabelledImages:
    """ImageNet's validation pictures: in class folders, or side by side, as they are distributed."""
    if any(path.is_dir() for path in (folder / 'val').iterdir()):
        return LabelledImages(folder / 'val', transform.steps)
    labels = folder / 'meta/val.txt'
    if not labels.is_file():
        raise MissingDataError(
            f'{folder / "val"} has no class folders: expected val/<class>/, or {labels} with a file name and the '
            'number of its class in each line'
        )
    return LabelledImages(folder / 'val', transform.steps, labels=str(labels), metainfo=dict(classes=classes))


def find_subset_lists(folder: str | Path) -> dict[str, Path]:
    """SimCLR's lists that lie in a folder, by share of the labels."""
    return {share: Path(folder, name) for share, name in SUBSET_LISTS.items() if Path(folder, name).is_file()}


def read_subset_list(path: str | Path, dataset: BaseDataset) -> np.ndarray:
    """Rows of a data set that a list of file names chooses.

    Args:
        path: Text file with one file name in each line, such as ``n01440764_10074.JPEG``, see :func:`rows_of_list`.
        dataset: Data set whose samples have ``img_path``.

    Returns:
        Rows in the order of the list, int64.

    Raises:
        FileNotFoundError: The list does not exist.
        ValueError: It is empty, names images that the dataset does not have or that are not unique, or the dataset
            consists of arrays without file names.
    """
    files = [picture_info(dataset, row).get('img_path') for row in range(len(dataset))]
    if None in files:
        raise ValueError(f'{path} chooses images by file name, which {type(dataset).__name__} does not have: move it')
    return np.array(rows_of_list(path, list(map(str, files)), dataset.data_root), dtype=np.int64)


def draw_per_class(
    labels: np.ndarray, counts: int | float, generator: np.random.Generator, spare: int = 0
) -> np.ndarray:
    """Draw pictures of every class.

    Args:
        labels: Class of every picture, (N,).
        counts: Pictures of each class, or a share in (0, 1) of them, rounded and at least 1.
        generator: Source of randomness.
        spare: Pictures of each class that are never drawn.

    Returns:
        Rows in rising order. A class with fewer pictures gives all but those that are spared.
    """
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = counts if isinstance(counts, int) else max(1, round(counts * len(rows)))
        chosen.append(generator.permutation(rows)[: min(count, max(0, len(rows) - spare))])
    return np.sort(np.concatenate(chosen))


def class_names(dataset: BaseDataset) -> Sequence[str]:
    """Names of the classes of a data set."""
    return [str(name) for name in dataset.metainfo['classes']]
