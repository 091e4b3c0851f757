"""Test images that are harder than those of training: corrupted, on other backgrounds, or adversarially selected."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmcv.transforms import Compose
from mmengine.dataset import BaseDataset, ConcatDataset

from mm_sop.datasets.labeled.folders import LabeledImages
from mm_sop.datasets.transforms.corruptions import CORRUPTIONS, SEVERITIES
from mm_sop.datasets.transforms.evaluation import EvaluationTransform
from mm_sop.datasets.transforms.perturb import Perturb
from mm_sop.evaluation.labeled_data import class_names

BACKGROUNDS = ('original', 'mixed_same', 'mixed_rand', 'mixed_next', 'only_fg', 'no_fg', 'only_bg_b', 'only_bg_t')
"""Variants of ImageNet-9."""


def perturb_dataset(dataset: BaseDataset, name: str, levels: Sequence[float], seed: int) -> ConcatDataset:
    """Concatenate the images of a dataset at every level of a perturbation, level by level.

    Images are perturbed after resizing and cropping, like those of ImageNet-C. The pipeline must end with
    ``PackInputs``; names and levels are those of :class:`Perturb`.
    """
    *steps, pack = dataset.pipeline.transforms
    perturbed = []
    for level in levels:
        changed = copy.copy(dataset)
        changed.pipeline = Compose([*steps, Perturb(name, level, seed), pack])
        perturbed.append(changed)
    return ConcatDataset(perturbed)


def find_corrupted(folder: Path, transform: EvaluationTransform) -> dict[str, list[LabeledImages]]:
    """Find ImageNet-C: ``<corruption>/<severity>/<class>/``, optionally below folders of the families.

    The images are cropped already, so that they are only resized. A corruption without all severities is left out; the
    datasets of the others are those of severities 1 ... 5.
    """
    steps = EvaluationTransform(transform.crop_size, transform.crop_size, transform.interpolation).steps
    found: dict[str, list[LabeledImages]] = {}
    for name in CORRUPTIONS:
        for root in (folder / name, *folder.glob(f'*/{name}')):
            if all((root / str(severity)).is_dir() for severity in SEVERITIES):
                found[name] = [LabeledImages(str(root / str(severity)), steps) for severity in SEVERITIES]
    return found


def find_backgrounds(folder: Path, transform: EvaluationTransform) -> dict[str, LabeledImages]:
    """Find the existing variants of ImageNet-9: ``<variant>/val/<class>/``, or a file list ``<variant>.json``."""
    found = {}
    for variant in BACKGROUNDS:
        if (folder / f'{variant}.json').is_file():
            found[variant] = LabeledImages(str(folder / variant), transform.steps)
        elif (folder / variant / 'val').is_dir():
            found[variant] = LabeledImages(str(folder / variant / 'val'), transform.steps)
    return found


def match_classes(dataset: BaseDataset, train: BaseDataset, class_map: Path | None = None) -> np.ndarray:
    """Map every class of the training set to a class of a dataset.

    Args:
        dataset: Dataset that is classified.
        train: Training set.
        class_map: File such as ImageNet-9's ``in_to_in9.json``, with the class for every training class, -1 for none.
            Without it, or if it does not exist, classes are matched by name.

    Returns:
        int64, (number of training classes,), -1 for classes that the dataset does not have.

    Raises:
        ValueError: A class of the dataset has no counterpart.
    """
    names, known = class_names(dataset), class_names(train)
    if class_map is not None and class_map.is_file():
        groups = {int(number): group for number, group in json.loads(class_map.read_text()).items()}
        matched = np.array([groups.get(number, -1) for number in range(len(known))])
    else:
        indices = {name: number for number, name in enumerate(names)}
        matched = np.array([indices.get(name, -1) for name in known])
    missing = [name for number, name in enumerate(names) if number not in matched]
    if missing:
        raise ValueError(f'class {missing[0]} of {dataset.data_root} is none of the {len(known)} training classes')
    return matched
