"""Manifest of semantic pairs, tied to the images in which they were mined."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mm_sop.datasets.seeded import SizedDataset
from mm_sop.utils.failures import UserError

MANIFEST_FORMAT = 1


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
        return dict(
            format=MANIFEST_FORMAT,
            num_pairs=len(self.pairs),
            pairs_sha256=hash_pairs(self.pairs, self.cosines),
            data=self.data,
            **self.definition,
        )

    @classmethod
    def load(cls, path: str | Path) -> 'PairManifest':
        """Read a manifest and check that it is complete.

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

    def check_data(self, dataset: SizedDataset) -> None:
        """Refuse data other than those in which the pairs were mined.

        Args:
            dataset: Dataset without augmentation.

        Raises:
            ManifestError: Number, names, order or content of the images differ.
        """
        found = describe_data(dataset)
        differences = '\n'.join(
            f'  {key}: mined {self.data.get(key)!r}, found {found.get(key)!r}'
            for key in found
            if found[key] != self.data.get(key)
        )
        if found != self.data:
            raise ManifestError(
                f'the pairs were mined from other data, their indices would point to wrong images:\n{differences}\n'
                'Restore the data, or mine the pairs again with tools/mine_pairs.py'
            )


def refreshed_manifest(folder: str | Path, epoch: int) -> Path:
    """File of the pairs that are used from an epoch on."""
    return Path(folder, f'epoch_{epoch}.json')


def hash_pairs(pairs: np.ndarray, cosines: np.ndarray) -> str:
    """SHA-256 of pairs and cosines as little-endian int64 and fp32."""
    return _hash([np.ascontiguousarray(pairs, dtype='<i8').data, np.ascontiguousarray(cosines, dtype='<f4').data])


def describe_data(dataset: SizedDataset) -> dict:
    """Identify the images of a dataset and their order, independent of where the folder is.

    Args:
        dataset: Dataset whose samples have ``img_path``, or ``img`` if the images are in memory.

    Returns:
        ``num_images``, ``kind`` (``'paths'`` or ``'pixels'``), ``sha256`` of the names below the common folder, or of
        the pixels, and for paths the ``first`` and ``last`` name.
    """
    samples = (image_info(dataset, index) for index in range(len(dataset)))
    first = image_info(dataset, 0) if len(dataset) else {}
    if 'img_path' in first:
        paths = [str(sample['img_path']) for sample in samples]
        common = os.path.dirname(os.path.commonprefix([min(paths), max(paths)]))  # noqa: PTH120, RUF071  # text
        start = len(common) + 1 if common else 0
        digest = _hash(os.fsencode(path[start:]) + b'\n' for path in paths)
        return dict(
            num_images=len(dataset), kind='paths', sha256=digest, first=paths[0][start:], last=paths[-1][start:]
        )
    if len(dataset) and 'img' not in first:
        raise ManifestError(f'samples of {type(dataset).__name__} have neither `img_path` nor `img`')
    digest = _hash(np.ascontiguousarray(sample['img']).data for sample in samples)
    return dict(num_images=len(dataset), kind='pixels', sha256=digest)


def image_info(dataset: SizedDataset, index: int) -> dict:
    """Sample of a dataset as its pipeline receives it; for datasets without ``get_data_info``, the sample itself."""
    return dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else dataset[index]


def _hash(chunks: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
