"""Semantic positive pairs (SePP): the manifest that stores them and the dataset that yields them."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mmengine.dataset import Compose, force_full_init
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS
from torch.utils.data import Dataset

from mm_sop.datasets.seeded import SizedDataset
from mm_sop.datasets.unlabeled import UnlabeledImages
from mm_sop.utils.failures import UserError

MANIFEST_FORMAT = 1
MODES = ('concat', 'replace', 'joint')


class ManifestError(UserError, ValueError):
    """A manifest of pairs cannot be used with these data; the message says why."""


@dataclass
class PairManifest:
    """Semantic pairs and everything that they depend on.

    Stored as ``<name>.json``, with the arrays in ``<name>.npz`` next to it.

    Attributes:
        pairs: Indices i < j into the whole dataset, sorted, int64, (M, 2).
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
        content = dict(num_pairs=len(self.pairs), pairs_sha256=hash_pairs(self.pairs, self.cosines), data=self.data)
        return dict(format=MANIFEST_FORMAT, **content, **self.definition)

    @classmethod
    def load(cls, path: str | Path) -> 'PairManifest':
        """Read a manifest from its JSON file and check that it is complete.

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

    def check_data(self, dataset: SizedDataset) -> None:
        """Refuse data other than those in which the pairs were mined; the dataset must not augment them.

        Raises:
            ManifestError: Number, names, order or content of the images differ.
        """
        found = describe_data(dataset)
        if found != self.data:
            differences = '\n'.join(
                f'  {key}: mined {self.data.get(key)!r}, found {value!r}'
                for key, value in found.items()
                if value != self.data.get(key)
            )
            raise ManifestError(
                f'the pairs were mined from other data, their indices would point to wrong images:\n{differences}\n'
                'Restore the data, or mine the pairs again with tools/mine_pairs.py'
            )


def refreshed_manifest(folder: str | Path, epoch: int) -> Path:
    """File of the pairs that are used from an epoch on."""
    return Path(folder, f'epoch_{epoch}.json')


def hash_pairs(pairs: np.ndarray, cosines: np.ndarray) -> str:
    """SHA-256 of pairs and cosines as little-endian int64 and fp32."""
    return hashlib.sha256(pairs.astype('<i8').tobytes() + cosines.astype('<f4').tobytes()).hexdigest()


def describe_data(dataset: SizedDataset) -> dict:
    """Identify the images of a dataset and their order, independent of where the folder is.

    Samples must have ``img_path``, or ``img`` if the images are in memory. The description has ``num_images``, ``kind``
    (``'paths'`` or ``'pixels'``), ``sha256`` of the names below the common folder, or of the pixels, and for paths the
    ``first`` and ``last`` name.
    """
    count = len(dataset)
    first = image_info(dataset, 0) if count else {'img': None}
    digest = hashlib.sha256()
    if 'img_path' in first:
        # In two passes, because a list of millions of strings takes gigabytes.
        lowest = highest = str(first['img_path'])
        for path in _iterate_paths(dataset):
            lowest, highest = min(lowest, path), max(highest, path)
        common = os.path.dirname(os.path.commonprefix([lowest, highest]))  # noqa: PTH120, RUF071  # text
        start = len(common) + 1 if common else 0
        for path in _iterate_paths(dataset):
            digest.update(os.fsencode(path[start:]) + b'\n')
        last = str(image_info(dataset, count - 1)['img_path'])
        names = dict(first=str(first['img_path'])[start:], last=last[start:])
        kind = dict(kind='paths', sha256=digest.hexdigest(), **names)
    elif 'img' in first:
        for index in range(count):
            digest.update(np.ascontiguousarray(image_info(dataset, index)['img']).data)
        kind = dict(kind='pixels', sha256=digest.hexdigest())
    else:
        raise ManifestError(f'samples of {type(dataset).__name__} have neither `img_path` nor `img`')
    return dict(num_images=count, **kind)


def _iterate_paths(dataset: SizedDataset) -> Iterator[str]:
    if isinstance(dataset, UnlabeledImages):  # much faster than one by one
        return iter(dataset.paths)
    return (str(image_info(dataset, index)['img_path']) for index in range(len(dataset)))


def image_info(dataset: SizedDataset, index: int) -> dict:
    """Sample of a dataset as its pipeline receives it; for datasets without ``get_data_info``, the sample itself."""
    return dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else dataset[index]


@DATASETS.register_module()
class SemanticPairDataset(Dataset):
    """Ordinary samples, whose views show one image, and semantic ones, whose views show a pair of images.

    The modes of SePP:

    - ``'concat'``: N + M entries. Entry ``i < N`` is image i; entry ``N + m`` is pair m, with its two images in
      random order.
    - ``'replace'``: N entries. An image with partners is paired with a random one of them with the probability
      ``partner_prob``.
    - ``'joint'``: N entries of three views: two of the image, and one of a random partner, or of the image itself if
      it has none. The algorithm must weight them (``SemanticMoCo`` and similar ones).

    Pairs are symmetric: each image is the other's partner. Wrap this dataset in a :class:`SeededDataset`; ordinary
    samples draw the same random numbers as without this wrapper.

    The meta information of ``data_samples`` describes the images shown: ``image_ids`` (indices of the first and second
    image), ``is_semantic`` (whether they are a pair) and ``partner_ids``, int64, (2, P), the indices of all partners of
    both images, padded with -1.

    Args:
        dataset (dict | Dataset): Dataset with paths or images in memory, without its own pipeline.
        manifest (str | Path | PairManifest, optional): Pairs from ``tools/mine_pairs.py``, the JSON file; None for no
            pairs until :class:`RefreshPairsHook` mines them.
        pipeline (Sequence[dict]): The pipeline of the base method, see :func:`pair_pipeline`.

    Raises:
        ManifestError: The manifest is missing, damaged, or was created from other data.
        ValueError: An argument is out of range, or the pipeline does not suit the mode.
    """

    def __init__(
        self,
        dataset: dict | SizedDataset,
        manifest: str | Path | PairManifest | None,
        pipeline: Sequence[dict],
        mode: str = 'concat',
        partner_prob: float = 0.5,
        lazy_init: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f'mode={mode!r} of SemanticPairDataset: expected one of {", ".join(MODES)}')
        if not 0 <= partner_prob <= 1:
            raise ValueError(f'partner_prob={partner_prob} of SemanticPairDataset: expected 0 ... 1')
        self.dataset: SizedDataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.pipeline = Compose(pair_pipeline(pipeline, mode))
        self.mode = mode
        self.partner_prob = partner_prob
        self._source = manifest
        self._refreshed: Path | None = None
        self._epoch = 0
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    def full_init(self) -> None:
        """Read the data and the manifest, and check that they belong together."""
        if self._fully_initialized:
            return
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()
        count = len(self.dataset)
        if isinstance(self._source, PairManifest):
            self.manifest = self._source
        elif self._source is not None:
            self.manifest = PairManifest.load(self._source)
        else:
            nothing = np.empty((0, 2), np.int64), np.empty(0, np.float32)
            self.manifest = PairManifest(*nothing, describe_data(self.dataset))
        self.manifest.check_data(self.dataset)
        self.partners = _Partners(self.manifest.pairs, count)
        self._fully_initialized = True
        pairs = len(self.manifest.pairs)
        found = f'{count} images and {pairs} semantic pairs, {pairs / max(count, 1):.1%}'
        print_log(f'SePP, mode {self.mode}: {found}; an epoch has {len(self)} entries', 'current')

    def follow(self, folder: str | Path) -> None:
        """Use pairs that are mined again during training, each from the epoch on in which they are mined.

        They will be in the folder, with the names of :func:`refreshed_manifest`.

        Raises:
            ValueError: In the mode ``'concat'``, where the length of an epoch depends on the number of pairs.
        """
        if self.mode == 'concat':
            raise ValueError("pairs can be mined again in the modes 'replace' and 'joint', not in 'concat'")
        self._refreshed = Path(folder)
        self._epoch = -1

    def set_epoch(self, epoch: int) -> None:
        """Choose the pairs of a zero-based epoch: the newest ones mined until then."""
        if self._refreshed is None or epoch == self._epoch:
            return
        self.full_init()
        self._epoch = epoch
        paths = [refreshed_manifest(self._refreshed, number) for number in range(epoch, -1, -1)]
        newest = next((path for path in paths if path.is_file()), None)
        manifest = self.manifest if newest is None else PairManifest.load(newest)
        self.partners = _Partners(manifest.pairs, len(self.dataset))

    @property
    def metainfo(self) -> dict:
        """Meta information of the wrapped dataset."""
        return getattr(self.dataset, 'metainfo', {})

    @force_full_init
    def __len__(self) -> int:
        return len(self.dataset) + (len(self.manifest.pairs) if self.mode == 'concat' else 0)

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Annotation of an entry's image, of a pair's first one."""
        count = len(self.dataset)
        return image_info(self.dataset, idx if idx < count else int(self.manifest.pairs[idx - count, 0]))

    @force_full_init
    def __getitem__(self, index: int) -> dict:
        """Load one sample; random numbers come from NumPy's global generator."""
        first, second = self._choose_images(index)
        results = image_info(self.dataset, first)
        if second != first:
            results['partner'] = image_info(self.dataset, second)
        sample = self.pipeline(results)
        partner_ids = self.partners.padded((first, second))
        shown = dict(image_ids=(first, second), is_semantic=second != first, partner_ids=partner_ids)
        sample['data_samples'].set_metainfo(shown)
        return sample

    def _choose_images(self, index: int) -> tuple[int, int]:
        """Indices of the two images of an entry; ordinary entries draw no random number."""
        if index >= len(self.dataset):
            first, second = self.manifest.pairs[index - len(self.dataset)].tolist()
            return (first, second) if np.random.random() < 0.5 else (second, first)
        partners = self.partners[index]
        if self.mode == 'concat' or not len(partners):
            return index, index
        if self.mode == 'replace' and np.random.random() >= self.partner_prob:
            return index, index
        return index, int(partners[np.random.randint(len(partners))])


def pair_pipeline(pipeline: Sequence[dict], mode: str) -> list[dict]:
    """Turn the pipeline of a two-view or multi-crop method into one for pairs.

    Steps before ``MultiView`` are applied to both images, ``MultiView`` becomes :class:`PairMultiView`, and later
    steps, such as masking and packing, remain. The mode ``'joint'`` adds a third view, with the transforms of the
    second.

    Raises:
        ValueError: There is not exactly one ``MultiView``, or it does not create two views in the mode ``'joint'``.

    Example:
        >>> multi_view = dict(type='MultiView', num_views=2, transforms=[[]])
        >>> steps = pair_pipeline([dict(type='LoadImage'), multi_view, dict(type='PackInputs')], 'concat')
        >>> [step['type'] for step in steps]
        ['mmpretrain.ApplyToPair', 'mmpretrain.PairMultiView', 'PackInputs']
    """
    names = [step['type'].split('.')[-1] for step in pipeline]
    positions = [index for index, name in enumerate(names) if name in ('MultiView', 'FastMultiView', 'PairMultiView')]
    if len(positions) != 1:
        raise ValueError(f'SemanticPairDataset needs a pipeline with one MultiView, found {len(positions)}')
    position = positions[0]
    views = dict(pipeline[position], type='mmpretrain.PairMultiView')
    if mode == 'joint':
        counts = np.atleast_1d(views['num_views']).tolist()
        if (total := sum(counts)) != 2:
            raise ValueError(f"mode='joint' of SemanticPairDataset needs a pipeline with two views, found {total}")
        views.update(num_views=[*counts[:-1], counts[-1] + 1], partner_views='last')
    loading = [dict(type='mmpretrain.ApplyToPair', transforms=list(pipeline[:position]))] if position else []
    return [*loading, views, *pipeline[position + 1 :]]


class _Partners:
    """The partners of every image, stored in one array."""

    def __init__(self, pairs: np.ndarray, count: int) -> None:
        both = np.concatenate([pairs, pairs[:, ::-1]])
        both = both[np.lexsort((both[:, 1], both[:, 0]))]
        self.partners = both[:, 1]
        self.starts = np.searchsorted(both[:, 0], np.arange(count + 1))
        self.max_count = int(np.diff(self.starts).max(initial=0))

    def __getitem__(self, index: int) -> np.ndarray:
        return self.partners[self.starts[index] : self.starts[index + 1]]

    def padded(self, indices: Sequence[int]) -> np.ndarray:
        """Partners of several images, int64, (n, max_count), padded with -1."""
        table = np.full((len(indices), self.max_count), -1, dtype=np.int64)
        for row, index in zip(table, indices, strict=True):
            row[: len(self[index])] = self[index]
        return table
