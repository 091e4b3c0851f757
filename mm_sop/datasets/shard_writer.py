"""Writes the images of folders to shards."""

import io
import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mm_sop.datasets.image_files import EXTENSIONS, iterate_images, report_left_out
from mm_sop.datasets.path_list import PathList
from mm_sop.datasets.shards import UNFINISHED, read_members
from mm_sop.utils.files import open_atomically, open_regular, printable, remove_stale_temporaries, write_atomically
from mm_sop.utils.folder_lock import LOCK, lock_folder

LEFT_OUT = 'left_out.txt'
"""List of the files that could not be read, beside the shards; absent if there are none."""

_BLOCK = 512
# Headers of the usual kind; long names need two more blocks.
_HEADER = 3 * _BLOCK


class WrittenShards(NamedTuple):
    """What was written: numbers of shards and images, and how many shards an earlier run had written."""

    shards: int
    images: int
    kept: int
    left_out: int


def write_shards(
    source: str | Path,
    out: str | Path,
    size: int = 500 * 10**6,
    extensions: Sequence[str] = EXTENSIONS,
    workers: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> WrittenShards:
    """Write the images below a folder to ``out/shard-000000.tar``, ..., in the order of :class:`UnlabeledImages`.

    Members are named like the files, with ``.`` in their names, except before the extension, as ``%2E``, because keys
    of WebDataset end at the first dot. Files are copied unchanged. The folder ``out`` appears when all shards are
    complete; until then they are in ``<out>.unfinished``, from which the same call resumes after an interruption.

    Args:
        source: Folder with images.
        out: Folder to create.
        size: Bytes of a shard at most, unless one image is larger.
        extensions: Extensions of the images.
        workers: Shards that are written at a time.
        progress: Called with the numbers of finished and of all shards.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError: ``source`` does not exist.
        ValueError: ``source`` has no images, or ``size`` or ``workers`` is out of range.
        LaunchError: Another process writes the same shards.
    """
    if size < 1 or workers < 1:
        raise ValueError(f'size={size} and workers={workers}: expected at least 1')
    out = Path(os.path.abspath(out))  # noqa: PTH100  # does not follow links
    if out.exists():
        raise FileExistsError(f'{out} exists already: remove it, or choose another folder')
    paths, sizes, left_out = _list_files(source, extensions)
    starts = _plan(sizes, size)
    unfinished = out.with_name(out.name + UNFINISHED)
    with lock_folder(unfinished, 'OUT'):
        remove_stale_temporaries(unfinished)
        shards = {unfinished / f'shard-{number:06d}.tar': number for number in range(len(starts) - 1)}
        for stale in set(unfinished.glob('shard-*.tar')) - shards.keys():
            stale.unlink()
        kept, images, root = 0, 0, os.path.join(source, '')  # noqa: PTH118  # begins all paths
        pool = ThreadPoolExecutor(workers)
        try:
            parts = {
                shard: (root, paths, sizes, range(starts[number], starts[number + 1]))
                for shard, number in shards.items()
            }
            running = [pool.submit(_write_shard, shard, *part) for shard, part in parts.items()]
            for done, future in enumerate(as_completed(running), start=1):
                was_kept, count, failed = future.result()
                kept, images = kept + was_kept, images + count
                left_out += failed
                if progress:
                    progress(done, len(running))
        finally:
            pool.shutdown(cancel_futures=True)
        if left_out:
            write_atomically(unfinished / LEFT_OUT, ''.join(f'{printable(line, True)}\n' for line in sorted(left_out)))
        (unfinished / LOCK).unlink(missing_ok=True)
        unfinished.rename(out)
    return WrittenShards(len(shards), images, kept, len(left_out))


def _list_files(source: str | Path, extensions: Sequence[str]) -> tuple[PathList, np.ndarray, list[str]]:
    """Paths and sizes of the images, and reasons why others cannot be read."""
    kinds: Counter[str] = Counter()
    sizes, left_out = array('q'), []

    def find_files() -> Iterator[str]:
        for path in iterate_images(source, tuple(extension.lower() for extension in extensions), kinds):
            try:
                sizes.append(os.stat(path).st_size)  # noqa: PTH116  # creating paths takes longer
            except OSError as error:
                left_out.append(f'{path}: {error.strerror}')
                continue
            yield path

    paths = PathList.collect(find_files())
    report_left_out(kinds, source)
    if not len(paths):
        raise ValueError(f'none of the {len(left_out)} images below {source} can be read: {left_out[0]}')
    return paths, np.frombuffer(sizes, np.int64), left_out


def _plan(sizes: np.ndarray, limit: int) -> list[int]:
    """Index of the first image of each shard, and the number of images."""
    starts, total = [0], 0
    for index, size in enumerate(sizes):
        length = -(-int(size) // _BLOCK) * _BLOCK + _HEADER
        if total and total + length > limit:
            starts.append(index)
            total = 0
        total += length
    return [*starts, len(sizes)]


def _write_shard(
    shard: Path, root: str, paths: PathList, sizes: np.ndarray, rows: range
) -> tuple[bool, int, list[str]]:
    """Write a shard unless it is there; returns whether it is, its number of images, and files that are left out."""
    names = _name_members([paths[row][len(root) :] for row in rows])
    if shard.exists() and [(name, sizes[row]) for name, row in zip(names, rows, strict=True)] == _list_members(shard):
        return True, len(rows), []
    left_out, count = [], 0
    with open_atomically(shard) as file, tarfile.open(fileobj=file, mode='w:', format=tarfile.GNU_FORMAT) as archive:
        for row, name in zip(rows, names, strict=True):
            path = paths[row]
            try:
                with open_regular(path) as image:
                    content, modified = image.read(), os.fstat(image.fileno()).st_mtime
            except OSError as error:
                left_out.append(f'{path}: {error.strerror}')
                continue
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), int(modified)
            archive.addfile(entry, io.BytesIO(content))
            count += 1
    return False, count, left_out


def _name_members(names: Sequence[str]) -> list[str]:
    """Names in the archive: different for different files, with keys that differ from those before."""
    members, previous = [], ''
    for path in names:
        folder, name = os.path.split(path)
        stem, extension = os.path.splitext(name)  # noqa: PTH122  # text
        key = os.path.join(folder, stem.replace('%', '%25').replace('.', '%2E'))  # noqa: PTH118
        # Images that differ in the extension only would be one sample for other readers.
        previous = key + extension.replace('.', '%2E') if key == previous else key
        members.append(previous + extension)
    return members


def _list_members(shard: Path) -> list[tuple[str, int]]:
    try:
        return [(member.name, member.size) for member in read_members(shard)]
    except (OSError, ValueError):
        return []
