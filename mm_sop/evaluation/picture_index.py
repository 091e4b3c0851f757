"""Index of the pictures below a folder, for searching them by their likeness to another."""

import hashlib
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Dataset

from mm_sop.datasets.files import printable
from mm_sop.datasets.transforms.loading import UnreadableImageError
from mm_sop.datasets.unlabelled_images import list_images
from mm_sop.engine.atomic import write_array_atomically, write_atomically
from mm_sop.evaluation.encoders import hash_file
from mm_sop.evaluation.features import extract_features
from mm_sop.evaluation.loading import Encoder
from mm_sop.evaluation.mining import black_sample
from mm_sop.evaluation.protocol import EvaluationTransform
from mm_sop.functional.knn import merge_neighbors

LISTING = 'index.json'
UNREADABLE = 'unreadable.txt'


class PictureFile(NamedTuple):
    """A file as it was when it was encoded.

    Attributes:
        path: Path below the folder of the index.
        size: Its bytes.
        modified: Time of the last change in nanoseconds.
        digest: SHA-256 of its content; empty until it is read.
        problem: Why it cannot be read; empty if it can.
    """

    path: str
    size: int
    modified: int
    digest: str = ''
    problem: str = ''

    @property
    def state(self) -> tuple[str, int, int]:
        """What changes when the file does, without reading it."""
        return self[:3]


@dataclass(frozen=True)
class IndexUpdate:
    """What :meth:`PictureIndex.update` did.

    Attributes:
        pictures: Pictures that can be searched.
        encoded: Pictures that went through the network.
        removed: Files of the older index that are gone or changed.
        unreadable: Files that cannot be read.
    """

    pictures: int
    encoded: int
    removed: int
    unreadable: int


class PictureIndex:
    """Normalised features of all pictures below a folder, kept between runs and memory-mapped.

    The store has ``index.json`` with the files, ``features-<key>.npy`` with a row for each picture that can be read,
    and ``unreadable.txt`` with the others. Features belong to the content of a file: moved pictures keep theirs, equal
    ones share them.

    Args:
        folder: Folder of the pictures.
        store: Folder of the index.

    Attributes:
        files: Pictures that can be searched; their positions are their numbers.
        unreadable: The others.
        features: Features, (N, D), fp32, of length 1.
    """

    def __init__(self, folder: str | Path, store: str | Path) -> None:
        self.folder = Path(folder)
        self.store = Path(store)
        self.files, self.unreadable = [], []
        self.features = torch.zeros(0, 0)
        self._read()

    def __len__(self) -> int:
        return len(self.files)

    def path(self, number: int) -> Path:
        """Where a picture lies."""
        return self.folder / self.files[number].path

    def search(self, features: Tensor, count: int) -> tuple[list[float], list[int]]:
        """Find the pictures that are most alike.

        Args:
            features: Features of the query, (D,), of any length.
            count: Number of pictures; all if there are fewer.

        Returns:
            Cosines in falling order and numbers of the pictures. Of equal cosines the smaller number comes first.
        """
        cosines = self.features @ normalize(features.float(), dim=0)
        found = cosines.topk(min(count, len(cosines)))
        cosines, numbers = merge_neighbors(found.values[None], found.indices[None], count)
        return cosines[0].tolist(), numbers[0].tolist()

    def update(
        self, encoder: Encoder, batch_size: int = 64, num_workers: int = 0, block_size: int = 512
    ) -> IndexUpdate:
        """Encode what is new or changed, and forget what is gone.

        What is encoded is saved after every block: an interrupted update goes on there.

        Args:
            encoder: The encoder on its device, always the same for a store.
            batch_size: Pictures encoded at once.
            num_workers: Worker processes that load pictures.
            block_size: Pictures encoded between two savings.

        Returns:
            What was done.

        Raises:
            FileNotFoundError: The folder does not exist.
            ValueError: There is no picture in it, or none that can be read; or the encoder gives features that are not
                finite.
        """
        # Files that could not even be opened are tried again.
        older = {file.state: file for file in (*self.files, *self.unreadable) if file.digest}
        listed = [_describe(self.folder, path) for path in list_images(self.folder)]
        files = [older.get(file.state, file) for file in listed]
        known = self._known_features()
        changed = [row for row, file in enumerate(files) if file.state not in older]
        encoded, started = 0, time.perf_counter()
        for start in range(0, len(changed), block_size):
            rows = changed[start : start + block_size]
            block = [_hash(self.folder, files[row]) for row in rows]
            fresh = {file.digest: file for file in block if not file.problem and file.digest not in known}
            features, problems = self._encode(list(fresh.values()), encoder, batch_size, num_workers)
            known.update(features)
            encoded += len(features)
            for row, file in zip(rows, block, strict=True):
                files[row] = file._replace(problem=problems.get(file.digest, file.problem))
            _report_progress(start + len(rows), len(changed), started)
        removed = len(older.keys() - {file.state for file in files})
        self._write(files, known)
        return IndexUpdate(len(self.files), encoded, removed, len(self.unreadable))

    def _read(self) -> None:
        path = self.store / LISTING
        listing = json.loads(path.read_text()) if path.is_file() else {}
        features = self.store / listing.get('features', '')
        if features.is_file():
            self.files = [PictureFile(*file) for file in listing['files']]
            self.unreadable = [PictureFile(*file) for file in listing['unreadable']]
            # Mapped copy-on-write, as PyTorch warns of arrays that cannot be written.
            self.features = torch.from_numpy(np.load(features, mmap_mode='c'))

    def _known_features(self) -> dict[str, np.ndarray]:
        """Features by digest, of the index and of the blocks that an interrupted update has left."""
        known = {file.digest: row for file, row in zip(self.files, self.features.numpy(), strict=True)}
        for path in self._blocks():
            with np.load(path) as block:
                known.update(zip(block['digests'].tolist(), block['features'], strict=True))
        return known

    def _encode(
        self, files: Sequence[PictureFile], encoder: Encoder, batch_size: int, num_workers: int
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Features and reasons why there are none, by digest; the features are saved."""
        if not files:
            return {}, {}
        reasons = {}

        def encode(batch: dict) -> dict[str, Tensor]:
            reasons.update(pair for sample in batch['data_samples'] for pair in sample.get('unreadable', ()))
            return dict(features=normalize(encoder(batch['inputs'].flip(1))[0].float().cpu()))

        paths = [str(self.folder / file.path) for file in files]
        pictures = _Pictures(paths, encoder.transform)
        features = extract_features(encode, pictures, batch_size, num_workers)['features']
        if not bool(features.isfinite().all()):
            raise ValueError('the features of the encoder are not finite: its network has diverged')
        digests = {path: file.digest for path, file in zip(paths, files, strict=True)}
        found = {digests[path]: row for path, row in zip(paths, features.numpy(), strict=True) if path not in reasons}
        self._save_block(found)
        return found, {digests[path]: reason for path, reason in reasons.items()}

    def _save_block(self, features: Mapping[str, np.ndarray]) -> None:
        if features:
            buffer = io.BytesIO()
            np.savez(buffer, digests=np.array(list(features)), features=np.stack(list(features.values())))
            write_atomically(self.store / f'block-{_digest(list(features))}.npz', buffer.getvalue())

    def _blocks(self) -> list[Path]:
        return sorted(self.store.glob('block-*.npz'))

    def _write(self, files: Sequence[PictureFile], features: Mapping[str, np.ndarray]) -> None:
        """Let a new index take the place of the old one; the listing, written last, says which features count."""
        readable = [file for file in files if not file.problem]
        unreadable = [file for file in files if file.problem]
        if not readable:
            raise ValueError(
                f'none of the {len(files)} pictures below {self.folder} can be read; the first: '
                f'{printable(unreadable[0].path)}: {printable(unreadable[0].problem)}'
            )
        name = f'features-{_digest([file.digest for file in readable])}.npy'
        if not (self.store / name).is_file():
            rows = (features[file.digest] for file in readable)
            shape = (len(readable), len(features[readable[0].digest]))
            write_array_atomically(self.store / name, shape, np.float32, rows)
        lines = [f'{file.path!r}: {printable(file.problem)}\n' for file in unreadable]
        write_atomically(self.store / UNREADABLE, ''.join(lines))
        listing = dict(features=name, files=readable, unreadable=unreadable)
        write_atomically(self.store / LISTING, json.dumps(listing))
        for path in (*self.store.glob('features-*.npy'), *self._blocks()):
            if path.name != name:
                path.unlink()
        self._read()


class _Pictures(Dataset):
    """Files prepared for an encoder; those that cannot be read are black."""

    def __init__(self, paths: Sequence[str], transform: EvaluationTransform) -> None:
        self.paths = paths
        self.crop_size = transform.crop_size
        self.pipeline = Compose(transform.steps)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        try:
            return self.pipeline(dict(img_path=self.paths[index]))
        except UnreadableImageError as error:
            return black_sample(error, self.crop_size)


def find_store(root: str | Path, folder: str | Path, encoder: Encoder) -> Path:
    """Where the index of a folder by an encoder lies, apart from those of other folders and encoders.

    Args:
        root: Folder of all indices.
        folder: Folder of the pictures.
        encoder: The encoder.
    """
    specification = asdict(encoder.specification)
    if specification['channel_order'] == 'rgb':
        del specification['channel_order']  # Indices of the usual order are older than this entry.
    definition = [specification, asdict(encoder.transform), str(Path(folder).resolve())]
    return Path(root, f'{Path(folder).resolve().name}-{_digest(definition)}')


def _describe(folder: Path, path: str) -> PictureFile:
    name = os.path.relpath(path, folder)
    try:
        status = os.stat(path)
    except OSError as error:
        return PictureFile(name, -1, -1, problem=str(error.strerror))
    return PictureFile(name, status.st_size, status.st_mtime_ns)


def _hash(folder: Path, file: PictureFile) -> PictureFile:
    try:
        return file._replace(digest=hash_file(folder / file.path))
    except OSError as error:
        return file._replace(problem=str(error.strerror))


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _report_progress(done: int, total: int, started: float) -> None:
    speed = done / (time.perf_counter() - started)
    left = (total - done) / speed
    print_log(f'Indexed {done:,} of {total:,} new files, {speed:.0f} a second, {left:.0f} s left', logger='current')
