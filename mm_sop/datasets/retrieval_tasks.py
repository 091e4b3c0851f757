"""What is to be found in retrieval: the revisited Oxford and Paris sets, and labelled folders."""

import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mm_sop.datasets.labelled_images import LabelledImages

# What a pickle of lists, numbers, texts and NumPy arrays may name; anything else could run code.
_PICKLED_NAMES = {
    (f'numpy.{core}.multiarray', name) for core in ('core', '_core') for name in ('_reconstruct', 'scalar')
} | {('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode')}

_GRADES = ('easy', 'hard', 'junk')

REVISITED_LEVELS = dict(
    medium=(('easy', 'hard'), ('junk',)),
    hard=(('hard',), ('junk', 'easy')),
    easy=(('easy',), ('junk', 'hard')),
)
"""Grades that are positive and grades that are junk at every level of difficulty."""


class Relevance(NamedTuple):
    """Database indices that a query should find, and those that do not count."""

    positives: Sequence[int]
    junk: Sequence[int]


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, a database, and what each query should find.

    Attributes:
        queries: Files of the queries.
        database: Files that are searched.
        levels: One :class:`Relevance` for every query, by level of difficulty.
        boxes: Boxes (x1, y1, x2, y2) of the objects asked for, or None.
    """

    queries: Sequence[Path]
    database: Sequence[Path]
    levels: dict[str, list[Relevance]]
    boxes: Sequence[Sequence[float]] | None = None


def read_retrieval_task(folder: str | Path) -> RetrievalTask:
    """Read a folder: revisited Oxford or Paris if it holds ``gnd_*.pkl`` or ``gnd_*.json``, else labelled pictures.

    Args:
        folder: The folder.
    """
    folder = Path(folder)
    files = sorted([*folder.glob('gnd_*.pkl'), *folder.glob('gnd_*.json')], key=lambda file: file.suffix != '.pkl')
    return read_revisited(files[0]) if files else read_labelled(folder)


def read_revisited(file: Path) -> RetrievalTask:
    """Read ground truth of the revisited Oxford and Paris sets.

    The file holds ``imlist``, ``qimlist`` and, for every query, ``gnd`` with ``bbx``, ``easy``, ``hard`` and ``junk``.
    The pictures are ``jpg/<name>.jpg`` beside it.

    Args:
        file: The ``.pkl`` of the benchmark, or the same as ``.json``.

    Raises:
        ValueError: The file is malformed, or would run code when loaded.
        FileNotFoundError: Pictures are missing.
    """
    content = _read_ground_truth(file)
    folder = file.parent / 'jpg'
    try:
        queries, database = ([folder / f'{name}.jpg' for name in content[key]] for key in ('qimlist', 'imlist'))
        truth = [{grade: _indices(entry[grade], len(database)) for grade in _GRADES} for entry in content['gnd']]
        boxes = [[float(value) for value in entry['bbx']] for entry in content['gnd']]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{file} is malformed ({type(error).__name__}: {error}). Expected imlist, qimlist and gnd, a list with '
            'bbx, easy, hard and junk for every query'
        ) from error
    if len(truth) != len(queries):
        raise ValueError(f'{file} has {len(queries)} queries in qimlist and {len(truth)} in gnd')
    _check_pictures([*queries, *database], folder)
    return RetrievalTask(queries, database, _grade_levels(truth), boxes)


def read_labelled(folder: str | Path) -> RetrievalTask:
    """Let every labelled picture search for the others of its identity, or of its class where no identity is known.

    Args:
        folder: Class folders or a listing, see :class:`LabelledImages`.
    """
    dataset = LabelledImages(str(folder))
    samples = [dataset.get_data_info(index) for index in range(len(dataset))]
    label = 'identity' if all('identity' in sample for sample in samples) else 'gt_label'
    labels = np.array([sample[label] for sample in samples])
    members = {value: np.flatnonzero(labels == value) for value in np.unique(labels)}
    relevance = [
        Relevance(members[value][members[value] != index], [index]) for index, value in enumerate(labels.tolist())
    ]
    paths = [Path(sample['img_path']) for sample in samples]
    return RetrievalTask(paths, paths, dict(all=relevance))


def _grade_levels(truth: Sequence[dict]) -> dict[str, list[Relevance]]:
    def collect(entry, grades):
        return np.concatenate([entry[grade] for grade in grades])

    return {
        level: [Relevance(collect(entry, positives), collect(entry, junk)) for entry in truth]
        for level, (positives, junk) in REVISITED_LEVELS.items()
    }


def _indices(values, total: int) -> np.ndarray:
    indices = np.asarray(values, dtype=np.int64).reshape(-1)
    if len(indices) and not 0 <= indices.min() <= indices.max() < total:
        raise ValueError(f'index {indices.max()} with {total} pictures')
    return indices


def _read_ground_truth(file: Path) -> dict:
    try:
        if file.suffix == '.json':
            return json.loads(file.read_text(encoding='utf-8'))
        # The released files were written by Python 2.
        return _PlainUnpickler(io.BytesIO(file.read_bytes()), encoding='latin1').load()
    except (pickle.UnpicklingError, ValueError, EOFError) as error:
        raise ValueError(f'{file} cannot be read: {error}') from error


def _check_pictures(paths: Sequence[Path], folder: Path) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {len(paths)} pictures are missing in {folder}, the first is {missing[0].name}'
        )


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _PICKLED_NAMES:
            raise pickle.UnpicklingError(f'it names {module}.{name}, which ground truth does not need')
        return super().find_class(module, name)
