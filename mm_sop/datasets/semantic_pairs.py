"""Data set wrapper that adds semantic positive pairs to the pictures of any data set (SePP)."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mmengine.dataset import Compose, force_full_init
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS
from torch.utils.data import Dataset

MODES = ('concat', 'replace', 'joint')
MANIFEST_FORMAT = 1
_VIEWS = ('MultiView', 'PairMultiView')


class ManifestError(ValueError):
    """A manifest of pairs cannot be used with these data; the message says why."""


@dataclass
class PairManifest:
    """Semantic pairs and all that defines them.

    On the disk it is ``<name>.json``, with ``<name>.npz`` for the arrays beside it.

    Attributes:
        pairs: Indices i < j into the whole data set, sorted, int64, (M, 2).
        cosines: Their similarity, fp32, (M,).
        data: Description of the data by :func:`describe_data`.
        definition: Encoder, selection and whatever else the pairs depend on.
    """

    pairs: np.ndarray
    cosines: np.ndarray
    data: dict
    definition: dict = field(default_factory=dict)

    @property
    def header(self) -> dict:
        """Content of the JSON file."""
        return dict(
            format=MANIFEST_FORMAT,
            num_pairs=len(self.pairs),
            pairs_sha256=hash_pairs(self.pairs, self.cosines),
            data=self.data,
            **self.definition,
        )

    @classmethod
    def load(cls, path: str | Path) -> 'PairManifest':
        """Read a manifest and check that it is whole.

        Args:
            path: The JSON file.

        Raises:
            ManifestError: It is missing or damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise ManifestError(
                f'no manifest {path.absolute()}: mine the pairs first with tools/mine_pairs.py CONFIG CHECKPOINT'
            )
        try:
            header = json.loads(path.read_text(encoding='utf-8'))
            with np.load(path.with_suffix('.npz'), allow_pickle=False) as arrays:
                pairs, cosines = arrays['pairs'], arrays['cosines']
            version, expected, data = header.pop('format'), header.pop('pairs_sha256'), header.pop('data')
        except (OSError, ValueError, KeyError) as error:
            raise ManifestError(f'manifest {path} is damaged: {type(error).__name__}: {error}') from error
        if version != MANIFEST_FORMAT:
            raise ManifestError(f'manifest {path} has format {version}, expected {MANIFEST_FORMAT}')
        if hash_pairs(pairs, cosines) != expected:
            raise ManifestError(f'the pairs in {path.with_suffix(".npz")} are not those that {path.name} describes')
        del header['num_pairs']
        return cls(pairs, cosines, data, header)

    def check_data(self, dataset: Dataset) -> None:
        """Refuse data other than those that were mined.

        Args:
            dataset: Data set without augmentation.

        Raises:
            ManifestError: Number, names, order or content of the pictures differ.
        """
        found = describe_data(dataset)
        if found == self.data:
            return
        differences = '\n'.join(
            f'  {key}: mined {self.data.get(key)!r}, found {found.get(key)!r}'
            for key in found
            if found[key] != self.data.get(key)
        )
        raise ManifestError(
            f'the pairs were mined from other data, their indices would point to wrong pictures:\n{differences}\n'
            'Restore the data, or mine the pairs again with tools/mine_pairs.py'
        )


def refreshed_manifest(folder: str | Path, epoch: int) -> Path:
    """Where the pairs are that are used from an epoch on."""
    return Path(folder, f'epoch_{epoch}.json')


def hash_pairs(pairs: np.ndarray, cosines: np.ndarray) -> str:
    """SHA-256 of pairs and cosines as little-endian int64 and fp32."""
    digest = hashlib.sha256(np.ascontiguousarray(pairs, dtype='<i8'))
    digest.update(np.ascontiguousarray(cosines, dtype='<f4'))
    return digest.hexdigest()


def describe_data(dataset: Dataset) -> dict:
    """Identify the pictures of a data set and their order, wherever the folder lies.

    Args:
        dataset: Data set whose samples have ``img_path``, or ``img`` where pictures are kept in memory.

    Returns:
        ``num_images``, ``kind`` (``'paths'`` or ``'pixels'``), ``sha256`` of the names below the common folder, or of
        the pixels, and for paths the ``first`` and ``last`` name.
    """
    samples = (picture_info(dataset, index) for index in range(len(dataset)))
    first = picture_info(dataset, 0) if len(dataset) else {}
    if 'img_path' in first:
        names = _relative_names([str(sample['img_path']) for sample in samples])
        digest = _hash(os.fsencode(name) + b'\n' for name in names)
        return dict(num_images=len(dataset), kind='paths', sha256=digest, first=names[0], last=names[-1])
    if len(dataset) and 'img' not in first:
        raise ManifestError(f'samples of {type(dataset).__name__} have neither `img_path` nor `img`')
    digest = _hash(np.ascontiguousarray(sample['img']) for sample in samples)
    return dict(num_images=len(dataset), kind='pixels', sha256=digest)


def picture_info(dataset: Dataset, index: int) -> dict:
    """Sample of a data set as its pipeline receives it."""
    return dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else dataset[index]


def _relative_names(paths: Sequence[str]) -> list[str]:
    common = os.path.dirname(os.path.commonprefix([min(paths), max(paths)]))
    start = len(common) + 1 if common else 0
    return [path[start:] for path in paths]


def _hash(parts: Iterable) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


class _Partners:
    """For every picture those that it is paired with."""

    def __init__(self, pairs: np.ndarray, count: int) -> None:
        both = np.concatenate([pairs, pairs[:, ::-1]])
        both = both[np.lexsort((both[:, 1], both[:, 0]))]
        self.partners = both[:, 1]
        self.starts = np.searchsorted(both[:, 0], np.arange(count + 1))
        self.most = int(np.diff(self.starts).max(initial=0))

    def __getitem__(self, index: int) -> np.ndarray:
        return self.partners[self.starts[index] : self.starts[index + 1]]

    def padded(self, indices: Sequence[int]) -> np.ndarray:
        """Partners of several pictures, filled up with -1, (n, most)."""
        table = np.full((len(indices), self.most), -1, dtype=np.int64)
        for row, index in zip(table, indices, strict=True):
            own = self[index]
            row[: len(own)] = own
        return table


def pair_pipeline(pipeline: Sequence[dict], mode: str) -> list[dict]:
    """Turn the pipeline of a two-view or multi-crop method into one for pairs.

    What stands before ``MultiView`` is applied to both pictures, ``MultiView`` becomes :class:`PairMultiView`, and what
    stands after it, such as masks and packing, remains. In the mode ``'joint'`` a third view is added, with the
    transforms of the second.

    Args:
        pipeline: Configs of transforms, with one ``MultiView``.
        mode: Mode of the :class:`SemanticPairDataset`.

    Raises:
        ValueError: There is not exactly one ``MultiView``, or ``'joint'`` is asked for and it makes not two views.
    """
    places = [place for place, step in enumerate(pipeline) if step['type'].split('.')[-1] in _VIEWS]
    if len(places) != 1:
        raise ValueError(f'SemanticPairDataset needs a pipeline with one MultiView, found {len(places)}')
    place = places[0]
    views = dict(pipeline[place], type='mmpretrain.PairMultiView')
    if mode == 'joint':
        counts = views['num_views']
        counts = [counts] if isinstance(counts, int) else list(counts)
        if sum(counts) != 2:
            raise ValueError(
                f"mode='joint' of SemanticPairDataset needs a pipeline with two views, found {sum(counts)}"
            )
        views.update(num_views=[*counts[:-1], counts[-1] + 1], partner_views='last')
    loading = [dict(type='mmpretrain.ApplyToPair', transforms=list(pipeline[:place]))] if place else []
    return [*loading, views, *pipeline[place + 1 :]]


@DATASETS.register_module()
class SemanticPairDataset(Dataset):
    """Ordinary samples, whose views show one picture, and semantic ones, whose views show a pair of pictures.

    The modes of SePP:

    - ``'concat'``: N + M entries. Entry ``i < N`` is picture i; entry ``N + m`` is pair m, with its two pictures in
      random order.
    - ``'replace'``: N entries. A picture with partners shows one of them, drawn at random, with the probability
      ``partner_prob``.
    - ``'joint'``: N entries of three views: two of the picture and one of a random partner, or of the picture itself
      where it has none. The algorithm has to know how to weigh them (``SemanticMoCo`` and its like).

    Partners are meant both ways: a pair makes each picture the other's partner. Wrap it in a :class:`SeededDataset`;
    ordinary samples draw the same random numbers as without this wrapper.

    Samples say what they show in the meta information of ``data_samples``: ``image_ids`` (indices of the first picture
    and of the second), ``is_semantic`` (whether they are a pair) and ``partner_ids``, int64, (2, P), the indices of
    all pictures that each of the two is paired with, filled up with -1.

    Args:
        dataset (dict | Dataset): Data set with paths or pictures in memory, without a pipeline of its own.
        manifest (str | PairManifest, optional): Pairs from ``tools/mine_pairs.py``, the JSON file; None for no pairs
            until :class:`RefreshPairsHook` finds some.
        pipeline (Sequence[dict]): The pipeline of the base method, see :func:`pair_pipeline`.
        mode (str): One of the modes. Defaults to ``'concat'``.
        partner_prob (float): Probability of a partner in ``'replace'``. Defaults to 0.5.
        lazy_init (bool): Read data and manifest only when they are asked for. Defaults to False.

    Raises:
        ManifestError: The manifest is missing, damaged, or was made from other data.
        ValueError: An argument is out of range, or the pipeline does not suit the mode.
    """

    def __init__(
        self,
        dataset: dict | Dataset,
        manifest: str | Path | PairManifest | None,
        pipeline: Sequence,
        mode: str = 'concat',
        partner_prob: float = 0.5,
        lazy_init: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f'mode={mode!r} of SemanticPairDataset: expected one of {", ".join(MODES)}')
        if not 0 <= partner_prob <= 1:
            raise ValueError(f'partner_prob={partner_prob} of SemanticPairDataset: expected 0 ... 1')
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.manifest = manifest
        self.pipeline = Compose(pair_pipeline(pipeline, mode))
        self.mode = mode
        self.partner_prob = partner_prob
        self._refreshed: Path | None = None
        self._epoch = 0
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    def full_init(self) -> None:
        """Read the listing of the data and the manifest, and compare them."""
        if self._fully_initialized:
            return
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()
        if self.manifest is None:
            none = np.empty((0, 2), np.int64), np.empty(0, np.float32)
            self.manifest = PairManifest(*none, describe_data(self.dataset))
        elif not isinstance(self.manifest, PairManifest):
            self.manifest = PairManifest.load(self.manifest)
        self.manifest.check_data(self.dataset)
        self.partners = _Partners(self.manifest.pairs, len(self.dataset))
        self._fully_initialized = True
        count, pairs = len(self.dataset), len(self.manifest.pairs)
        print_log(
            f'SePP, mode {self.mode}: {count} pictures and {pairs} semantic pairs, {pairs / max(count, 1):.1%}; '
            f'an epoch has {len(self)} entries',
            logger='current',
        )

    def follow(self, folder: str | Path) -> None:
        """Use pairs that are found anew during training, from the epoch on in which they are found.

        Args:
            folder (str | Path): Where they will be, as :func:`refreshed_manifest` names them.

        Raises:
            ValueError: In the mode ``'concat'``, where the number of pairs is part of the length of an epoch.
        """
        if self.mode == 'concat':
            raise ValueError("pairs can be found anew in the modes 'replace' and 'joint', not in 'concat'")
        self._refreshed = Path(folder)
        self._epoch = -1

    def set_epoch(self, epoch: int) -> None:
        """Choose the pairs of an epoch.

        Args:
            epoch (int): Number of the epoch, from 0.
        """
        if self._refreshed is None or epoch == self._epoch:
            return
        self.full_init()
        self._epoch = epoch
        names = [refreshed_manifest(self._refreshed, number) for number in range(epoch, -1, -1)]
        newest = next((name for name in names if name.is_file()), None)
        manifest = self.manifest if newest is None else PairManifest.load(newest)
        self.partners = _Partners(manifest.pairs, len(self.dataset))

    @property
    def metainfo(self) -> dict:
        """Meta information of the wrapped data set."""
        return getattr(self.dataset, 'metainfo', {})

    @force_full_init
    def __len__(self) -> int:
        return len(self.dataset) + (len(self.manifest.pairs) if self.mode == 'concat' else 0)

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Annotation of an entry's picture, of a pair's first one.

        Args:
            idx (int): Index of the entry.
        """
        count = len(self.dataset)
        return picture_info(self.dataset, idx if idx < count else int(self.manifest.pairs[idx - count, 0]))

    @force_full_init
    def __getitem__(self, index: int) -> dict:
        """Load one sample; random numbers come from NumPy's global generator.

        Args:
            index (int): Index of the entry.
        """
        first, second = self._draw(index)
        results = picture_info(self.dataset, first)
        if second != first:
            results['partner'] = picture_info(self.dataset, second)
        sample = self.pipeline(results)
        sample['data_samples'].set_metainfo(
            dict(
                image_ids=(first, second),
                is_semantic=second != first,
                partner_ids=self.partners.padded((first, second)),
            )
        )
        return sample

    def _draw(self, index: int) -> tuple[int, int]:
        """Choose the two pictures of an entry; ordinary ones draw nothing."""
        if index >= len(self.dataset):
            pair = self.manifest.pairs[index - len(self.dataset)].tolist()
            return tuple(pair if np.random.random() < 0.5 else pair[::-1])
        own = self.partners[index]
        if self.mode == 'concat' or not len(own):
            return index, index
        if self.mode == 'replace' and np.random.random() >= self.partner_prob:
            return index, index
        return index, int(own[np.random.randint(len(own))])
