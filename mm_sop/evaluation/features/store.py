"""Resumable storage of arrays, and the cache of features that builds on it."""

import io
import json
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import barrier, broadcast_object_list, get_dist_info, is_main_process
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import Dataset, Subset

from mm_sop.datasets.semantic_pairs import ManifestError, image_info
from mm_sop.encoders.encoder import Encoder
from mm_sop.evaluation.features.extraction import DTYPES, READOUTS, arrays_of, encode_arrays, extract_features
from mm_sop.evaluation.features.identity import content_key, describe_images
from mm_sop.utils.files import write_array_atomically, write_atomically

_ROWS_CHECKED_AT_ONCE = 2**14


class ArrayStore:
    """Groups of named arrays in a folder, which is created with the first of them, one ``.npz`` file each.

    Files are complete or absent, so that an interrupted computation continues with the groups that are missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __contains__(self, group: str) -> bool:
        return bool(self.names(group))

    def names(self, group: str) -> set[str]:
        """Names of the arrays of a group; none if it is missing or damaged."""
        try:
            with zipfile.ZipFile(self._path(group)) as archive:
                return {name.removesuffix('.npy') for name in archive.namelist()}
        except (FileNotFoundError, zipfile.BadZipFile):
            return set()

    def read(self, group: str, *names: str) -> dict[str, np.ndarray]:
        """Read some arrays of a group, or all of them."""
        with np.load(self._path(group)) as arrays:
            return {name: arrays[name] for name in names or arrays.files}

    def write(self, group: str, arrays: Mapping[str, np.ndarray], compress: bool = False) -> None:
        """Write a group."""
        buffer = io.BytesIO()
        # The stubs take names of arrays for options.
        save: Callable[..., None] = np.savez_compressed if compress else np.savez
        save(buffer, **arrays)
        write_atomically(self._path(group), buffer.getvalue())

    def compute(self, group: str, function: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Read a group; if it is missing, compute and write it first."""
        if group not in self:
            self.write(group, function(), compress=True)
        return self.read(group)

    def groups(self, prefix: str = '') -> list[str]:
        """Names of the stored groups that start with a prefix, sorted."""
        return sorted(path.stem for path in self.folder.glob(f'{prefix}*.npz'))

    def remove(self, group: str) -> None:
        """Delete a group if it exists."""
        self._path(group).unlink(missing_ok=True)

    def _path(self, group: str) -> Path:
        return self.folder / f'{group}.npz'


class FeatureShards:
    """Features of selected images on the disk, resumable after every shard.

    A shard has the features of ``shard_size`` images, so that neither the number of processes nor an interruption
    changes what is computed together.

    Args:
        folder: Folder of the shards, with ``definition.json``.
        images: Indices of the images, (K,).
        definition: What the features depend on, JSON-serializable. Features of another definition are refused.
        names: Names of the features that the encoder gives.
        dtype: Type in which features are stored, one of :data:`DTYPES`.
    """

    def __init__(
        self,
        folder: str | Path,
        images: np.ndarray,
        definition: dict,
        shard_size: int = 4096,
        names: Sequence[str] = ('features',),
        dtype: str = 'float32',
    ) -> None:
        self.store = ArrayStore(folder)
        self.images = images
        self.definition = dict(definition, num_images=len(images), shard_size=shard_size)
        starts = range(0, len(images), shard_size)
        self.shards = {f'shard_{start:09d}': images[start : start + shard_size] for start in starts}
        self.names = names
        self.dtype = DTYPES[dtype]

    @property
    def folder(self) -> Path:
        """Folder of the shards."""
        return self.store.folder

    def encode(self, encode: Callable, dataset: Dataset, batch_size: int = 256, num_workers: int = 0) -> None:
        """Encode the missing shards; the processes divide them among themselves.

        Args:
            encode: Encoder, see :func:`extract_features`; it gives all of ``names``.
            dataset: The whole dataset, which ``images`` are indices of.

        Raises:
            ManifestError: The folder holds features of another definition.
        """
        rank, world_size = get_dist_info()
        # One process decides, as the others may already see new files.
        plan: list[Any] = [self._plan() if is_main_process() else None]
        broadcast_object_list(plan)
        if isinstance(plan[0], str):
            raise ManifestError(plan[0])
        missing = plan[0][rank::world_size]
        started = time.perf_counter()
        for done, shard in enumerate(missing, start=1):
            selected = Subset(dataset, self.shards[shard].tolist())
            features = extract_features(encode, selected, batch_size, num_workers)
            self.store.write(shard, {name: _to_array(features[name].to(self.dtype)) for name in self.names})
            seconds = (time.perf_counter() - started) / done * (len(missing) - done)
            print_log(f'Encoded shard {done} of {len(missing)}, {seconds:.0f} s left', logger='current')
        barrier()

    def load(self, name: str = 'features') -> Tensor:
        """Load all features of a name into memory, (K, D)."""
        return torch.cat([_to_tensor(self.store.read(shard, name)[name]) for shard in self.shards])

    def merge(self) -> None:
        """Join the shards to one file ``<name>.npy`` for every name, and delete them."""
        for name in self.names:
            first = self.store.read(next(iter(self.shards)), name)[name]
            parts = (self.store.read(shard, name)[name] for shard in self.shards)
            shape = (len(self.images), first.shape[1])
            write_array_atomically(self.folder / f'{name}.npy', shape, first.dtype, parts)
        for shard in self.shards:
            self.store.remove(shard)

    def _plan(self) -> list[str] | str:
        """Names of the missing shards, or the reason why the folder cannot be used."""
        path, wanted = self.folder / 'definition.json', json.dumps(self.definition, indent=1)
        if path.is_file() and path.read_text() != wanted:
            known = json.loads(path.read_text())
            changed = ', '.join(key for key in self.definition if known.get(key) != self.definition[key])
            return f'{self.folder} holds features of another {changed}: delete it, or choose another --work-dir'
        write_atomically(path, wanted)
        # Another extraction may have left shards with other arrays.
        return [shard for shard in self.shards if not self.store.names(shard).issuperset(self.names)]


class FeatureCache:
    """Features of datasets by encoder, images, transform and type.

    Every combination has a folder with ``definition.json`` and one memory-mapped file for each array. An interrupted
    extraction continues after the last complete shard.

    Args:
        folder: Folder of all folders.
        dtype: ``'float32'``, or ``'bfloat16'`` to encode under autocast and store half of the bytes.
    """

    def __init__(self, folder: str | Path, dtype: str = 'float32', shard_size: int = 4096) -> None:
        if dtype not in DTYPES:
            raise ValueError(f'features can be stored as {" or ".join(DTYPES)}, not as {dtype!r}')
        self.folder = Path(folder)
        self.dtype = dtype
        self.shard_size = shard_size
        self._checked: set[Path] = set()

    def read(
        self,
        encoder: Encoder,
        dataset: BaseDataset,
        transform: dict,
        readouts: Sequence[str],
        batch_size: int = 256,
        num_workers: int = 0,
    ) -> dict[str, Tensor]:
        """Read the features of a dataset; those that are missing are extracted in one pass.

        Args:
            encoder: The encoder on its device.
            dataset: The dataset.
            transform: What its pipeline does, JSON-serializable.
            readouts: Names in :data:`READOUTS`.

        Returns:
            Features of every readout, (N, D), fp32. Unknown ones, and NaN or infinite features, raise a ValueError.
        """
        if unknown := ', '.join(sorted(set(readouts) - set(READOUTS))):
            raise ValueError(f'no readout {unknown}: choose among {", ".join(READOUTS)}')
        data = describe_images(dataset)
        definition = dict(encoder=encoder.identity, data=data, transform=transform, dtype=self.dtype)
        folder = self.folder / content_key(definition)
        arrays = arrays_of(readouts)
        missing = [[array for array in arrays if not (folder / f'{array}.npy').is_file()]]
        broadcast_object_list(missing)
        if names := missing[0]:
            shards = FeatureShards(folder, np.arange(len(dataset)), definition, self.shard_size, names, self.dtype)
            encode = partial(encode_arrays, encoder, names, DTYPES[self.dtype])
            shards.encode(encode, dataset, batch_size, num_workers)
            if is_main_process():
                shards.merge()
            barrier()
        loaded = {array: self._load(folder / f'{array}.npy', dataset) for array in arrays}
        # A single array stays memory-mapped.
        parts = {readout: [loaded[array] for array in READOUTS[readout]] for readout in readouts}
        return {name: arrays[0] if len(arrays) == 1 else torch.cat(arrays, dim=1) for name, arrays in parts.items()}

    def _load(self, path: Path, dataset: BaseDataset) -> Tensor:
        """Map a file into memory; the first time its features are checked."""
        features = _to_tensor(np.load(path, mmap_mode='c'))
        if path not in self._checked:
            check_finite(features, dataset, path.parent)
            self._checked.add(path)
        return features


def check_finite(features: Tensor, dataset: BaseDataset, folder: Path) -> None:
    """Raise a ValueError if any of the features of a dataset, (N, D), stored in a folder, is NaN or infinite."""
    blocks = [~block.isfinite().all(1) for block in features.split(_ROWS_CHECKED_AT_ONCE)]
    rows = torch.cat(blocks).nonzero()[:, 0].tolist()
    if rows:
        first = image_info(dataset, rows[0]).get('img_path', f'number {rows[0]}')
        raise ValueError(
            f'{len(rows)} of {len(features)} images have features that are NaN or infinite, the first is {first}. '
            f'Check the weights; if they were encoded in bfloat16, try float32. Then delete {folder}'
        )


def _to_array(features: Tensor) -> np.ndarray:
    # NumPy has no bfloat16.
    return (features.view(torch.int16) if features.dtype == torch.bfloat16 else features).numpy()


def _to_tensor(array: np.ndarray) -> Tensor:
    features = torch.from_numpy(array)
    return features.view(torch.bfloat16).float() if features.dtype == torch.int16 else features
