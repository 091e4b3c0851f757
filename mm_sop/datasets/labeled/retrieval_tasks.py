"""Retrieval tasks: the revisited Oxford and Paris sets, and labeled folders."""

import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mm_sop.datasets.labeled.folders import LabeledImages

# Names that a pickle of lists, numbers, strings and NumPy arrays needs; any other could run code.
_PICKLED_NAMES = {
    (f'numpy.{core}.multiarray', name) for core in ('core', '_core') for name in ('_reconstruct', 'scalar')
} | {('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode')}

_GRADES = ('easy', 'hard', 'junk')

REVISITED_LEVELS = dict(
    medium=(('easy', 'hard'), ('junk',)), hard=(('hard',), ('junk', 'easy')), easy=(('easy',), ('junk', 'hard'))
)
"""Positive grades and junk grades of every level of difficulty."""


class Relevance(NamedTuple):
    """Database indices that a query should retrieve, and those that are ignored."""

    positives: Sequence[int]
    junk: Sequence[int]


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, a database, and what each query should retrieve.

    Attributes:
        queries: Files of the queries.
        database: Files to search.
        levels: One :class:`Relevance` per query, by level of difficulty.
        boxes: Boxes (x1, y1, x2, y2) of the queried objects, or None.
    """

    queries: Sequence[Path]
    database: Sequence[Path]
    levels: dict[str, list[Relevance]]
    boxes: Sequence[Sequence[float]] | None = None


def read_retrieval_task(folder: str | Path) -> RetrievalTask:
    """Read a folder: revisited Oxford or Paris if it contains ``gnd_*.pkl`` or ``gnd_*.json``, else labeled images."""
    folder = Path(folder)
    files = sorted([*folder.glob('gnd_*.pkl'), *folder.glob('gnd_*.json')], key=lambda file: file.suffix != '.pkl')
    return read_revisited(files[0]) if files else read_labeled(folder)


def read_revisited(file: Path) -> RetrievalTask:
    """Read the ground truth of the revisited Oxford and Paris sets.

    The file contains ``imlist``, ``qimlist`` and ``gnd``, which has ``bbx``, ``easy``, ``hard`` and ``junk`` for every
    query, as the benchmark's ``.pkl``, or as ``.json``. The images are ``jpg/<name>.jpg`` next to it.

    Raises:
        ValueError: The file is malformed, or would run code when loaded.
        FileNotFoundError: Images are missing.
    """
    content, folder = _read_ground_truth(file), file.parent / 'jpg'
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
    paths = [*queries, *database]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {len(paths)} images are missing in {folder}, the first is {missing[0].name}'
        )
    levels: dict[str, list[Relevance]] = {level: [] for level in REVISITED_LEVELS}
    for level, (positives, junk) in REVISITED_LEVELS.items():
        for entry in truth:
            wanted, ignored = (np.concatenate([entry[grade] for grade in grades]) for grades in (positives, junk))
            levels[level].append(Relevance(wanted, ignored))
    return RetrievalTask(queries, database, levels, boxes)


def read_labeled(folder: str | Path) -> RetrievalTask:
    """Use every image of a :class:`LabeledImages` as a query for the others of its identity, or else of its class."""
    dataset = LabeledImages(str(folder))
    samples = [dataset.get_data_info(index) for index in range(len(dataset))]
    label = 'identity' if all('identity' in sample for sample in samples) else 'gt_label'
    labels = np.array([sample[label] for sample in samples])
    members = {value: np.flatnonzero(labels == value) for value in np.unique(labels)}
    relevance = [Relevance(members[value][members[value] != row], [row]) for row, value in enumerate(labels.tolist())]
    paths = [Path(sample['img_path']) for sample in samples]
    return RetrievalTask(paths, paths, dict(all=relevance))


def _indices(values: Sequence[int], total: int) -> np.ndarray:
    indices = np.asarray(values, dtype=np.int64).reshape(-1)
    if len(indices) and not 0 <= indices.min() <= indices.max() < total:
        raise ValueError(f'index {indices.max()} with {total} images')
    return indices


def _read_ground_truth(file: Path) -> dict:
    try:
        if file.suffix == '.json':
            return json.loads(file.read_text(encoding='utf-8'))
        # The released files were written by Python 2.
        return _PlainUnpickler(io.BytesIO(file.read_bytes()), encoding='latin1').load()
    except (pickle.UnpicklingError, ValueError, EOFError) as error:
        raise ValueError(f'{file} cannot be read: {error}') from error


class _PlainUnpickler(pickle.Unpickler):
    """Refuses everything but plain data."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _PICKLED_NAMES:
            raise pickle.UnpicklingError(f'it contains {module}.{name}, which ground truth does not need')
        return super().find_class(module, name)
