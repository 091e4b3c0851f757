"""Features on the disk: extracted once, kept under a key of everything they depend on, memory-mapped."""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import barrier, broadcast_object_list, get_dist_info, is_main_process
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import Dataset, Subset

from mm_sop.datasets.semantic_pairs import ManifestError, describe_data, picture_info
from mm_sop.engine.atomic import write_array_atomically, write_atomically
from mm_sop.evaluation.encoders import FrozenEncoder, hash_file
from mm_sop.evaluation.features import extract_features
from mm_sop.models.utils.readout import Readout, read_out

READOUTS = {
    'global': ('global',),
    'patch': ('patch',),
    'global+patch': ('global', 'patch'),
    'last4': ('block4', 'block3', 'block2', 'block1'),
}
"""Features by name, and the arrays that are joined for them: ``'global'`` is [CLS] or the pooled map, ``'patch'`` the
mean patch token of the last block, ``'last4'`` the [CLS] tokens or pooled maps of the last four blocks or stages."""

DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16)

# A larger file of these kinds hardly ever keeps its size when it changes.
_SIZE_TELLS = ('.jpg', '.jpeg', '.png', '.webp', '.gif', '.gz', '.tgz', '.zip')
_SMALL_FILE = 2**14
_CHECK_BLOCK = 2**14


class FeatureShards:
    """Features of chosen pictures on the disk, in files that are written one by one and kept between runs.

    Every file has one array of the features of ``shard_size`` pictures, so that neither the number of processes nor an
    interruption changes them.

    Args:
        folder: Where they lie.
        images: Indices of the pictures, (K,).
        definition: What the features depend on, ready for JSON. Features of another definition are refused.
        shard_size: Pictures in a file.
        names: Names of the features that the encoder gives.
        dtype: Name of the type in which they are kept, one of :data:`DTYPES`.
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
        self.folder = Path(folder)
        self.images = images
        self.definition = dict(definition, num_images=len(images), shard_size=shard_size)
        self.starts = range(0, len(images), shard_size)
        self.shard_size = shard_size
        self.names = names
        self.dtype = DTYPES[dtype]

    def encode(self, encode: Callable, dataset: Dataset, batch_size: int = 256, num_workers: int = 0) -> None:
        """Write the files that are missing; the processes share them.

        Args:
            encode: Encoder, see :func:`extract_features`; it gives all of ``names``.
            dataset: All pictures of the data set.
            batch_size: Pictures encoded at once.
            num_workers: Worker processes that load pictures.

        Raises:
            ManifestError: The folder holds features of another definition.
        """
        rank, world_size = get_dist_info()
        # One process decides, as the others may already see new files.
        plan = [None]
        if is_main_process():
            plan[0] = self._plan()
        broadcast_object_list(plan)
        if isinstance(plan[0], str):
            raise ManifestError(plan[0])
        missing = plan[0][rank::world_size]
        started = time.perf_counter()
        for done, start in enumerate(missing):
            chosen = Subset(dataset, self.images[start : start + self.shard_size].tolist())
            features = extract_features(encode, chosen, batch_size, num_workers)
            for name in self.names:
                write_atomically(self._path(start, name), _to_npy(_to_array(features[name].to(self.dtype))))
            seconds = (time.perf_counter() - started) / (done + 1) * (len(missing) - done - 1)
            print_log(f'Encoded shard {done + 1} of {len(missing)}, {seconds:.0f} s left', logger='current')
        barrier()

    def load(self, name: str = 'features') -> Tensor:
        """All features of a name, (K, D), in memory."""
        return torch.cat([_to_tensor(shard) for shard in self._open(name)])

    def merge(self) -> None:
        """Join the shards of every name to one file ``<name>.npy``, and remove them."""
        for name in self.names:
            shards = list(self._open(name))
            shape = (len(self.images), shards[0].shape[1])
            write_array_atomically(self.folder / f'{name}.npy', shape, shards[0].dtype, shards)
            for start in self.starts:
                self._path(start, name).unlink()

    def _open(self, name: str):
        return (np.load(self._path(start, name), mmap_mode='c') for start in self.starts)

    def _plan(self) -> list[int] | str:
        """Starts of the missing shards, or why the folder cannot be used."""
        path, wanted = self.folder / 'definition.json', json.dumps(self.definition, indent=1)
        if path.is_file() and path.read_text() != wanted:
            known = json.loads(path.read_text())
            changed = [key for key in self.definition if known.get(key) != self.definition[key]]
            which = ', '.join(changed)
            return f'{self.folder} holds features of another {which}: delete it, or choose another --work-dir'
        write_atomically(path, wanted)
        return [start for start in self.starts if not all(self._is_whole(start, name) for name in self.names)]

    def _is_whole(self, start: int, name: str) -> bool:
        try:
            shard = np.load(self._path(start, name), mmap_mode='r')
            return len(shard) == len(self.images[start : start + self.shard_size])
        except (OSError, ValueError):
            return False

    def _path(self, start: int, name: str) -> Path:
        return self.folder / f'{name}_{start:09d}.npy'


class FeatureCache:
    """Features of data sets by encoder, listing, transform and type.

    Every combination has a folder with ``definition.json`` and one memory-mapped file for each array. An interrupted
    extraction goes on where it stopped.

    Args:
        folder: Folder of all folders.
        dtype: ``'float32'``, or ``'bfloat16'`` to encode under autocast and keep half of the bytes.
        shard_size: Pictures encoded between two savings.
    """

    def __init__(self, folder: str | Path, dtype: str = 'float32', shard_size: int = 4096) -> None:
        if dtype not in DTYPES:
            raise ValueError(f'features can be kept as {" or ".join(DTYPES)}, not as {dtype!r}')
        self.folder = Path(folder)
        self.dtype = dtype
        self.shard_size = shard_size
        self._checked = set()

    def read(
        self,
        encoder: FrozenEncoder,
        dataset: Dataset,
        transform: dict,
        readouts: Sequence[str],
        batch_size: int = 256,
        num_workers: int = 0,
    ) -> dict[str, Tensor]:
        """Features of a data set, extracted in one pass where they are missing.

        Args:
            encoder: The encoder on its device.
            dataset: The data set.
            transform: What its pipeline does, ready for JSON.
            readouts: Names in :data:`READOUTS`.
            batch_size: Pictures encoded at once.
            num_workers: Worker processes that load pictures.

        Returns:
            Features of every readout, (N, D), fp32.

        Raises:
            ValueError: A readout is unknown, or features are not finite.
        """
        unknown = set(readouts) - set(READOUTS)
        if unknown:
            raise ValueError(f'no readout {", ".join(sorted(unknown))}: choose among {", ".join(READOUTS)}')
        arrays = list(dict.fromkeys(array for readout in readouts for array in READOUTS[readout]))
        data = describe_pictures(dataset)
        definition = dict(encoder=encoder.identity, data=data, transform=transform, dtype=self.dtype)
        folder = self.folder / content_key(definition)
        missing = [[array for array in arrays if not (folder / f'{array}.npy').is_file()]]
        broadcast_object_list(missing)
        if missing[0]:
            names, images = missing[0], np.arange(len(dataset))
            shards = FeatureShards(folder, images, definition, self.shard_size, names, self.dtype)
            encode = partial(encode_arrays, encoder, names, DTYPES[self.dtype])
            shards.encode(encode, dataset, batch_size, num_workers)
            if is_main_process():
                shards.merge()
            barrier()
        loaded = {array: _to_tensor(np.load(folder / f'{array}.npy', mmap_mode='c')) for array in arrays}
        for array, features in loaded.items():
            if (folder, array) not in self._checked:
                refuse_non_finite(features, dataset, folder)
                self._checked.add((folder, array))
        return {readout: _join([loaded[array] for array in READOUTS[readout]]) for readout in readouts}


def refuse_non_finite(features: Tensor, dataset: Dataset, folder: Path) -> None:
    """Stop before figures are made of features that are no numbers.

    Args:
        features: Features of a data set, (N, D).
        dataset: The data set, for the message.
        folder: Where the features are kept.

    Raises:
        ValueError: Some are NaN or infinite.
    """
    rows = torch.cat([~block.isfinite().all(1) for block in features.split(_CHECK_BLOCK)]).nonzero()[:, 0].tolist()
    if rows:
        first = picture_info(dataset, rows[0]).get('img_path', f'number {rows[0]}')
        raise ValueError(
            f'{len(rows)} of {len(features)} pictures have features that are NaN or infinite, the first is {first}. '
            f'Check the weights; if they were encoded in bfloat16, try float32. Then delete {folder}'
        )


def describe_pictures(dataset: Dataset) -> dict:
    """Identify the pictures of a data set by names and content: sets that differ in their content may share all names.

    Args:
        dataset: Data set, see :func:`describe_data`.

    Returns:
        Description by :func:`describe_data`, for files with ``content``, a hash of what :func:`describe_file` gives.
    """
    description = describe_data(dataset)
    if description['kind'] == 'paths':
        paths = (picture_info(dataset, index)['img_path'] for index in range(len(dataset)))
        description['content'] = content_key(dict(files=[describe_file(path) for path in paths]))
    return description


def describe_file(path: str | Path) -> int | str:
    """What tells whether a file has changed: the size of a large compressed one, the hash of any other.

    Both are the same wherever a data set is copied to, and for all processes of machines with copies of their own;
    times of change are not. Only a large compressed file that changes without any change of its size goes unnoticed.

    Args:
        path: The file; -1 for one that does not exist or is no regular file, which is reported when it is loaded.
    """
    if not os.path.isfile(path):
        return -1
    status = os.stat(path)
    if status.st_size > _SMALL_FILE and str(path).lower().endswith(_SIZE_TELLS):
        return status.st_size
    return _hash_once(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2**18)
def _hash_once(path: str, size: int, time_of_change: int) -> str:
    """Hash of a file, read again only if its size or time has changed since this process read it."""
    return hash_file(path)


def content_key(definition: Mapping) -> str:
    """Short hash of a description that is ready for JSON."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True, default=str).encode()).hexdigest()[:16]


@torch.no_grad()
def distinct_readouts(encoder: FrozenEncoder, readouts: Sequence[str], crop_size: int) -> list[str]:
    """Those of several readouts that an encoder has, and that differ from each other.

    A convolutional network may have fewer than four stages that are known, and its pooled map is its mean patch.

    Args:
        encoder: The encoder.
        readouts: Names in :data:`READOUTS`.
        crop_size: Side of the pictures.
    """
    device = next(encoder.parameters()).device
    probe = torch.linspace(-1, 1, 3 * crop_size**2, device=device).view(1, 3, crop_size, crop_size)
    kept, seen = [], []
    for readout in readouts:
        names = READOUTS[readout]
        try:
            arrays = _name_arrays(read_out(encoder.network, probe, _num_blocks(names)), names)
        except ValueError:
            continue
        parts = _distinct(list(arrays.values()))
        if not any(len(parts) == len(old) and all(map(_are_equal, parts, old)) for old in seen):
            kept.append(readout)
            seen.append(parts)
    return kept


def _distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor for row, tensor in enumerate(tensors) if not any(_are_equal(tensor, old) for old in tensors[:row])]


def _are_equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.allclose(left, right, atol=1e-5)


def _num_blocks(names: Sequence[str]) -> int:
    return max((int(name.removeprefix('block')) for name in names if name.startswith('block')), default=1)


def _name_arrays(readout: Readout, names: Sequence[str]) -> dict[str, Tensor]:
    """Some of the arrays of :data:`READOUTS`; block 1 is the last."""
    arrays = {f'block{index}': summary for index, summary in enumerate(reversed(readout.summaries), start=1)}
    arrays.update({'global': readout.global_features, 'patch': readout.local_map.mean((2, 3))})
    return {name: arrays[name] for name in names}


def encode_arrays(encoder: FrozenEncoder, names: Sequence[str], dtype: torch.dtype, batch: dict) -> dict[str, Tensor]:
    """Arrays of :data:`READOUTS` for a collated batch, fp32, on the CPU; computed in bfloat16 if that is the dtype."""
    with torch.autocast(next(encoder.parameters()).device.type, torch.bfloat16, dtype == torch.bfloat16):
        arrays = _name_arrays(encoder.read(batch, _num_blocks(names)), names)
    return {name: array.float().cpu() for name, array in arrays.items()}


def _to_array(features: Tensor) -> np.ndarray:
    # NumPy has no bfloat16.
    return (features.view(torch.int16) if features.dtype == torch.bfloat16 else features).numpy()


def _to_tensor(array: np.ndarray) -> Tensor:
    features = torch.from_numpy(array)
    return features.view(torch.bfloat16).float() if features.dtype == torch.int16 else features


def _to_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _join(arrays: Sequence[Tensor]) -> Tensor:
    """Side by side; a single array stays memory-mapped."""
    return arrays[0] if len(arrays) == 1 else torch.cat(arrays, dim=1)
