"""Index of the images below a folder, for search by image."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import normalize

from mm_sop.datasets.image_files import ImageFiles, list_images
from mm_sop.datasets.transforms.evaluation import BlackIfUnreadable
from mm_sop.encoders.encoder import Encoder
from mm_sop.evaluation.features.extraction import extract_features
from mm_sop.evaluation.features.identity import content_key
from mm_sop.evaluation.features.store import ArrayStore
from mm_sop.functional.neighbors import stable_topk
from mm_sop.utils.files import hash_file, printable, write_array_atomically, write_atomically

FILE_LIST = 'index.json'
UNREADABLE = 'unreadable.txt'


class ImageFile(NamedTuple):
    """State of a file when it was encoded.

    Attributes:
        path: Path below the folder of the index.
        size: Size in bytes.
        modified: Modification time in nanoseconds.
        digest: SHA-256 of its content; empty until it is read.
        problem: Reason why it cannot be read; empty if it can.
    """

    path: str
    size: int
    modified: int
    digest: str = ''
    problem: str = ''

    @property
    def state(self) -> tuple[str, int, int]:
        """Path, size and modification time, which reveal changes without reading the file."""
        return self[:3]


@dataclass(frozen=True)
class IndexUpdate:
    """Numbers of indexed and of newly encoded images, of files that are missing or changed, and of unreadable ones."""

    images: int
    encoded: int
    removed: int
    unreadable: int


class ImageIndex:
    """Normalized features of all images below a folder, on the disk and memory-mapped.

    The store has ``index.json`` with the list of files, ``features-<key>.npy`` with a row for each readable image, and
    ``unreadable.txt`` with the other files. Features belong to the content of a file: moved images keep theirs, and
    duplicates share them.

    Args:
        folder: Folder of the images.
        store: Folder of the index.

    Attributes:
        files: Readable images, in the order of the features.
        unreadable: The other files.
        features: Features, (N, D), fp32, normalized.
    """

    def __init__(self, folder: str | Path, store: str | Path) -> None:
        self.folder = Path(folder)
        self.store = Path(store)
        self.files: list[ImageFile] = []
        self.unreadable: list[ImageFile] = []
        self.blocks = ArrayStore(store)
        self.features = torch.zeros(0, 0)
        self._read()

    def __len__(self) -> int:
        return len(self.files)

    def path(self, number: int) -> Path:
        """Path of an image."""
        return self.folder / self.files[number].path

    def search(self, features: Tensor, count: int) -> tuple[list[float], list[int]]:
        """Find the most similar images.

        Args:
            features: Features of the query, (D,), of any norm.
            count: Number of images; all if there are fewer.

        Returns:
            Cosine similarities in descending order and indices of the images; ties are broken by the smaller index.
        """
        cosines = self.features @ normalize(features.float(), dim=0)
        cosines, numbers = stable_topk(cosines[None], min(count, len(cosines)))
        return cosines[0].tolist(), numbers[0].tolist()

    def update(
        self, encoder: Encoder, batch_size: int = 64, num_workers: int = 0, block_size: int = 512
    ) -> IndexUpdate:
        """Encode new and changed images, and remove missing ones.

        Features are saved after every block; an interrupted update continues after the last one.

        Args:
            encoder: The encoder on its device, always the same for a store.
            batch_size: Images encoded at once.
            num_workers: Worker processes that load images.
            block_size: Images in a block.

        Raises:
            FileNotFoundError: The folder does not exist.
            ValueError: It has no image or no readable one, or the features are not finite.
        """
        # Files without a digest could not even be opened; they are tried again.
        older = {file.state: file for file in (*self.files, *self.unreadable) if file.digest}
        listed = [_describe(self.folder, path) for path in list_images(self.folder)]
        files = [older.get(file.state, file) for file in listed]
        # By digest, of the index and of the blocks of an interrupted update.
        known = {file.digest: row for file, row in zip(self.files, self.features.numpy(), strict=True)}
        for group in self.blocks.groups('block-'):
            saved = self.blocks.read(group)
            known.update(zip(saved['digests'].tolist(), saved['features'], strict=True))
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
            done = start + len(rows)
            speed = done / (time.perf_counter() - started)
            left = (len(changed) - done) / speed
            print_log(
                f'Indexed {done:,} of {len(changed):,} new files, {speed:.0f} per second, {left:.0f} s left', 'current'
            )
        removed = len(older.keys() - {file.state for file in files})
        self._write(files, known)
        return IndexUpdate(len(self.files), encoded, removed, len(self.unreadable))

    def _read(self) -> None:
        path = self.store / FILE_LIST
        file_list = json.loads(path.read_text()) if path.is_file() else {}
        features = self.store / file_list.get('features', '')
        if features.is_file():
            self.files = [ImageFile(*file) for file in file_list['files']]
            self.unreadable = [ImageFile(*file) for file in file_list['unreadable']]
            # Copy-on-write, as PyTorch warns about read-only arrays.
            self.features = torch.from_numpy(np.load(features, mmap_mode='c'))

    def _encode(
        self, files: Sequence[ImageFile], encoder: Encoder, batch_size: int, num_workers: int
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Features, which are saved, and reasons why there are none, by digest."""
        if not files:
            return {}, {}
        reasons: dict[str, str] = {}

        def encode(batch: dict) -> dict[str, Tensor]:
            reasons.update(pair for sample in batch['data_samples'] for pair in sample.get('unreadable', ()))
            return dict(features=normalize(encoder(batch['inputs'].flip(1))[0].float().cpu()))

        paths = [str(self.folder / file.path) for file in files]
        images = ImageFiles(paths, [BlackIfUnreadable(encoder.transform.steps, encoder.transform.crop_size)])
        features = extract_features(encode, images, batch_size, num_workers)['features']
        if not bool(features.isfinite().all()):
            raise ValueError('the features of the encoder are not finite: its network has diverged')
        digests = {path: file.digest for path, file in zip(paths, files, strict=True)}
        found = {digests[path]: row for path, row in zip(paths, features.numpy(), strict=True) if path not in reasons}
        if found:
            arrays = dict(digests=np.array(list(found)), features=np.stack(list(found.values())))
            self.blocks.write(f'block-{content_key(list(found))}', arrays)
        return found, {digests[path]: reason for path, reason in reasons.items()}

    def _write(self, files: Sequence[ImageFile], features: Mapping[str, np.ndarray]) -> None:
        """Replace the index; the file list, written last, names the valid features."""
        readable = [file for file in files if not file.problem]
        unreadable = [file for file in files if file.problem]
        if not readable:
            raise ValueError(
                f'none of the {len(files)} images below {self.folder} can be read; the first: '
                f'{printable(unreadable[0].path)}: {printable(unreadable[0].problem)}'
            )
        name = f'features-{content_key([file.digest for file in readable])}.npy'
        if not (self.store / name).is_file():
            rows = (features[file.digest] for file in readable)
            shape = (len(readable), len(features[readable[0].digest]))
            write_array_atomically(self.store / name, shape, np.float32, rows)
        lines = [f'{file.path!r}: {printable(file.problem)}\n' for file in unreadable]
        write_atomically(self.store / UNREADABLE, ''.join(lines))
        file_list = dict(features=name, files=readable, unreadable=unreadable)
        write_atomically(self.store / FILE_LIST, json.dumps(file_list))
        for path in self.store.glob('features-*.npy'):
            if path.name != name:
                path.unlink()
        for group in self.blocks.groups('block-'):
            self.blocks.remove(group)
        self._read()


def find_store(root: str | Path, folder: str | Path, encoder: Encoder) -> Path:
    """Path of the index of a folder by an encoder, below the folder ``root`` of all indices."""
    specification = asdict(encoder.specification)
    if specification['channel_order'] == 'rgb':
        del specification['channel_order']  # Indices written before this entry existed are RGB.
    definition = [specification, asdict(encoder.transform), str(Path(folder).resolve())]
    return Path(root, f'{Path(folder).resolve().name}-{content_key(definition)}')


def _describe(folder: Path, path: str) -> ImageFile:
    name = os.path.relpath(path, folder)
    try:
        status = Path(path).stat()
    except OSError as error:
        return ImageFile(name, -1, -1, problem=str(error.strerror))
    return ImageFile(name, status.st_size, status.st_mtime_ns)


def _hash(folder: Path, file: ImageFile) -> ImageFile:
    try:
        return file._replace(digest=hash_file(folder / file.path))
    except OSError as error:
        return file._replace(problem=str(error.strerror))
