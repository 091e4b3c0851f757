"""Any folder of pictures as a data set for self-supervised training."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset, force_full_init
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS

from mm_sop.datasets.files import printable
from mm_sop.engine.atomic import write_atomically

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.ppm', '.pgm', '.tif', '.tiff')

# What is left out beside files with other endings.
_DEAD_LINK = 'links that cannot be followed'
_NO_FILE = 'neither files nor folders'
_UNREADABLE = 'unreadable folders'
_MAX_KINDS = 8


@DATASETS.register_module()
class UnlabelledImages(BaseDataset):
    """Pictures below one or several folders, flat or nested, without labels.

    Hidden files and folders are ignored, symbolic links are followed. What else is left out, by its ending or because
    it cannot be read, is said once. The order is that of sorted names, the same on every machine. The paths are held in
    one array that worker processes share, about 100 bytes for each picture.

    Args:
        data_root (str | Sequence[str]): Folder or folders.
        pipeline (Sequence[dict | callable]): Transforms. Defaults to ().
        extensions (Sequence[str]): Endings of picture files, in small letters. Defaults to :data:`EXTENSIONS`.
        limit (int, optional): Use this many pictures, evenly spaced over the sorted listing. Defaults to None, all.
        indices (int | Sequence[int], optional): Use the first pictures or the given ones, applied after ``limit``.
            Defaults to None.
        index_file (str, optional): Text file that keeps the listing between runs, for folders that are slow to list.
            It is written when missing or made for other folders or extensions; delete it after adding or removing
            pictures. Defaults to None.
        metainfo (dict, optional): Meta information. Defaults to None.
        lazy_init (bool): List the folders only when the data are asked for. Defaults to False.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: A folder holds no picture, or ``limit`` is out of range.
    """

    METAINFO = dict(dataset_type='unlabelled_images')

    def __init__(
        self,
        data_root: str | Sequence[str],
        pipeline: Sequence = (),
        extensions: Sequence[str] = EXTENSIONS,
        limit: int | None = None,
        indices: int | Sequence[int] | None = None,
        index_file: str | None = None,
        metainfo: dict | None = None,
        lazy_init: bool = False,
    ) -> None:
        self.folders = [data_root] if isinstance(data_root, str | Path) else list(data_root)
        if not self.folders:
            raise ValueError('UnlabelledImages: data_root is an empty list; give at least one folder')
        self.extensions = tuple(extension.lower() for extension in extensions)
        self.limit = limit
        self.index_file = index_file
        super().__init__(
            data_root=data_root,
            data_prefix={},
            pipeline=pipeline,
            indices=indices,
            metainfo=metainfo,
            lazy_init=lazy_init,
        )

    def load_data_list(self) -> list[str]:
        """List the pictures.

        Returns:
            list[str]: Paths.
        """
        paths = self._load_index() if self.index_file else None
        if paths is None:
            left_out = Counter()
            paths = [path for folder in self.folders for path in list_images(folder, self.extensions, left_out)]
            report_left_out(self.folders, left_out)
            if self.index_file:
                self._write_index(paths)
        return paths if self.limit is None else _evenly_spaced(paths, self.limit)

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Path and index of one picture.

        Args:
            idx (int): Index; negative ones count from the end.

        Returns:
            dict: ``img_path`` and ``sample_idx``.
        """
        idx = range(len(self))[idx]
        start = self.data_address[idx - 1] if idx else 0
        path = self.data_bytes[start : self.data_address[idx]].tobytes()
        return dict(img_path=os.fsdecode(path), sample_idx=idx)

    def _serialize_data(self):
        """Join the bare paths: pickling a dictionary for each, as MMEngine does, takes longer than listing them."""
        encoded = [os.fsencode(path) for path in self.data_list]
        self.data_list.clear()
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.frombuffer(b''.join(encoded), np.uint8), np.cumsum(lengths)

    @property
    def _index_header(self):
        return json.dumps(dict(folders=[str(folder) for folder in self.folders], extensions=self.extensions))

    def _load_index(self):
        """Read the listing, or return None where there is none for these folders and extensions."""
        try:
            text = os.fsdecode(Path(self.index_file).read_bytes())
        except FileNotFoundError:
            return None
        header, *paths = text.split('\n')
        # A complete file ends with a line break.
        return paths[:-1] if header == self._index_header and paths and not paths[-1] else None

    def _write_index(self, paths):
        text = '\n'.join([self._index_header, *paths, ''])
        if text.count('\n') != len(paths) + 1:
            raise ValueError('a file name contains a line break: rename that file or do without `index_file`')
        write_atomically(self.index_file, os.fsencode(text))


def list_images(
    folder: str | Path, extensions: Sequence[str] = EXTENSIONS, left_out: Counter | None = None
) -> list[str]:
    """List all pictures below a folder, see :func:`iterate_images`; unless it is counted, what is left out is said."""
    counts = Counter() if left_out is None else left_out
    paths = list(iterate_images(folder, extensions, counts))
    if left_out is None:
        report_left_out(folder, counts)
    return paths


def iterate_images(
    folder: str | Path, extensions: Sequence[str] = EXTENSIONS, left_out: Counter | None = None
) -> Iterator[str]:
    """Go through all pictures below a folder: in every folder first its files, then its subfolders, sorted by name.

    Subfolders that cannot be read and links that lead nowhere are passed over.

    Args:
        folder (str | Path): Folder.
        extensions (Sequence[str]): Endings of picture files in small letters.
        left_out (Counter, optional): Counts what is no picture, by ending or kind. Defaults to None.

    Yields:
        str: Paths that begin with ``folder``.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: There is no picture in it.
        OSError: The folder itself cannot be read.
    """
    if not os.path.isdir(folder):
        kind = 'is a file' if os.path.exists(folder) else 'does not exist'
        raise FileNotFoundError(
            f'data folder {os.path.abspath(folder)} {kind}: set `data_root` to a folder with pictures'
        )
    extensions = tuple(extensions)
    left_out = Counter() if left_out is None else left_out
    before, found, visited, pending = left_out.copy(), False, set(), [str(folder)]
    while pending:
        current = pending.pop()
        try:
            identity = os.stat(current)
            if (identity.st_dev, identity.st_ino) in visited:  # a symbolic link back to a parent
                continue
            visited.add((identity.st_dev, identity.st_ino))
            files, subfolders = _scan(current, left_out)
        except OSError:
            if current == str(folder):
                raise
            left_out[_UNREADABLE] += 1
            continue
        pending += reversed(subfolders)
        for path in files:
            if path.lower().endswith(extensions):
                found = True
                yield path
            else:
                left_out[os.path.splitext(path)[1].lower() or 'no extension'] += 1
    if not found:
        raise ValueError(_describe_empty(folder, extensions, left_out - before))


def _scan(folder: str, left_out: Counter) -> tuple[list[str], list[str]]:
    """The sorted paths of files and of subfolders, without hidden ones; counts what is neither."""
    with os.scandir(folder) as scanned:
        entries = sorted((entry for entry in scanned if entry.name[0] != '.'), key=attrgetter('name'))
    files, subfolders = [], []
    for entry in entries:
        try:
            if entry.is_dir():
                subfolders.append(entry.path)
            elif entry.is_file():
                files.append(entry.path)
            else:
                left_out[_NO_FILE if os.path.exists(entry.path) else _DEAD_LINK] += 1
        except OSError:  # a link to itself, or into a folder that is forbidden
            left_out[_DEAD_LINK] += 1
    return files, subfolders


def report_left_out(folder: str | Path | Sequence[str | Path], left_out: Counter) -> None:
    """Say once what :func:`iterate_images` has found below a folder, or several, and left out."""
    if left_out and is_main_process():
        folders = [folder] if isinstance(folder, str | Path) else folder
        _warn_once(
            f'{printable(", ".join(map(str, folders)))}: left out {_describe(left_out)}. Only files with the endings '
            'in `extensions` are used'
        )


@lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    print_log(message, 'current', logging.WARNING)


def _describe(left_out: Counter) -> str:
    kinds = left_out.most_common(_MAX_KINDS)
    rest = len(left_out) - len(kinds)
    return ', '.join(f'{count} x {printable(kind)}' for kind, count in kinds) + (f' and {rest} others' if rest else '')


def _describe_empty(folder, extensions, others):
    seen = _describe(others) or 'no files at all'
    return (
        f'no pictures below {os.path.abspath(folder)}: looked for {" ".join(extensions)}, found {seen}. '
        'Correct `data_root`, or name the endings of your files in `extensions`'
    )


def _evenly_spaced(items, count):
    if not 0 < count <= len(items):
        raise ValueError(f'limit={count}: expected 1 ... {len(items)}, the number of pictures found')
    return [items[position] for position in np.arange(count) * len(items) // count]
