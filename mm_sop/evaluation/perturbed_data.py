"""Test pictures that are harder than those learnt from: corrupted, with other backgrounds, or hand-picked."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmcv.transforms import Compose
from mmengine.dataset import BaseDataset, ConcatDataset

from mm_sop.datasets.labelled_images import LabelledImages
from mm_sop.datasets.transforms.corruptions import CORRUPTIONS, SEVERITIES
from mm_sop.datasets.transforms.perturb import Perturb
from mm_sop.evaluation.protocol import EvaluationTransform
from mm_sop.evaluation.sources import class_names

BACKGROUNDS = (
    'original',
    'mixed_same',
    'mixed_rand',
    'mixed_next',
    'only_fg',
    'no_fg',
    'only_bg_b',
    'only_bg_t',
)
"""Variants of ImageNet-9."""


def perturb_dataset(dataset: BaseDataset, name: str, levels: Sequence[float], seed: int) -> ConcatDataset:
    """All pictures of a data set at every level of a perturbation, level after level.

    Pictures are perturbed as the network sees them, after resizing and cropping, as ImageNet-C was made.

    Args:
        dataset: Data set whose pipeline ends with ``PackInputs``.
        name: One of those of :class:`Perturb`.
        levels: Its levels.
        seed: Seed of what is drawn.
    """
    return ConcatDataset([_with_step(dataset, Perturb(name, level, seed)) for level in levels])


def _with_step(dataset: BaseDataset, step: Perturb) -> BaseDataset:
    *steps, pack = dataset.pipeline.transforms
    changed = copy.copy(dataset)
    changed.pipeline = Compose([*steps, step, pack])
    return changed


def random_subset(dataset: BaseDataset, count: int | None, seed: int) -> BaseDataset:
    """Pictures drawn without replacement, in their order; all of them if there are no more."""
    if count is None or count >= len(dataset):
        return dataset
    rows = np.random.default_rng(seed).permutation(len(dataset))[:count]
    return dataset.get_subset(np.sort(rows).tolist())


def find_corrupted(folder: Path, transform: EvaluationTransform) -> dict[str, list[LabelledImages]]:
    """Read ImageNet-C: ``<corruption>/<severity>/<class>/``, perhaps below folders for the families.

    The pictures are cropped already, so that they are only resized. A corruption that lacks a severity is left out.

    Args:
        folder: Folder of the set.
        transform: How pictures are prepared.

    Returns:
        Data sets of severities 1 ... 5 by corruption.
    """
    steps = EvaluationTransform(transform.crop_size, transform.crop_size, transform.interpolation).steps
    found = {}
    for name in CORRUPTIONS:
        for root in (folder / name, *folder.glob(f'*/{name}')):
            if all((root / str(severity)).is_dir() for severity in SEVERITIES):
                found[name] = [LabelledImages(root / str(severity), steps) for severity in SEVERITIES]
    return found


def find_backgrounds(folder: Path, transform: EvaluationTransform) -> dict[str, LabelledImages]:
    """Read ImageNet-9: ``<variant>/val/<class>/``, or ``<variant>.json``, a listing, for the variants that exist.

    Args:
        folder: Folder of the set.
        transform: How pictures are prepared.

    Returns:
        Data sets by variant, in the order of :data:`BACKGROUNDS`.
    """
    found = {}
    for variant in BACKGROUNDS:
        if (folder / f'{variant}.json').is_file():
            found[variant] = LabelledImages(folder / variant, transform.steps)
        elif (folder / variant / 'val').is_dir():
            found[variant] = LabelledImages(folder / variant / 'val', transform.steps)
    return found


def match_classes(dataset: BaseDataset, train: BaseDataset, listing: Path | None = None) -> np.ndarray:
    """Class of a data set that every class of the training set stands for.

    Args:
        dataset: Data set that is classified.
        train: Data set that is learnt from.
        listing: File such as ImageNet-9's ``in_to_in9.json``, which gives it for every training class, -1 for none;
            used if it exists.

    Returns:
        int64, (number of training classes,), -1 for classes that the data set does not have.

    Raises:
        ValueError: Some class of the data set has no counterpart.
    """
    names, known = class_names(dataset), class_names(train)
    if listing is not None and listing.is_file():
        groups = {int(number): group for number, group in json.loads(listing.read_text()).items()}
        matched = np.array([groups.get(number, -1) for number in range(len(known))])
    else:
        places = {name: number for number, name in enumerate(names)}
        matched = np.array([places.get(name, -1) for name in known])
    missing = [name for number, name in enumerate(names) if number not in matched]
    if missing:
        raise ValueError(f'class {missing[0]} of {dataset.data_root} is none of the {len(known)} training classes')
    return matched
