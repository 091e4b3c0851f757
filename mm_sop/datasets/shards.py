"""Images in tar archives (shards), in the layout of WebDataset, as a dataset with random access."""

import errno
import glob
import hashlib
import json
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.dataset import force_full_init
from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS

from mm_sop.datasets.image_files import EXTENSIONS, iterate_images, report_left_out, shorten
from mm_sop.datasets.path_list import PathList
from mm_sop.datasets.unlabeled import UnlabeledImages, open_index
from mm_sop.utils.failures import UserError
from mm_sop.utils.files import open_regular, printable

UNFINISHED = '.unfinished'
"""Ending of a folder of shards that are still being written."""

_COMPRESSED = ('.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.tar.zst', '.tar.lz4')
_MAGIC = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd', b'\x04"M\x18')
_BLOCK = 512
# Archives are padded to records of 10 KiB, seldom more.
_TRAILER = 2**16
_MEMBER = re.compile(r'tar:/+(/.*?)/(\d+)\+(\d+)/(.*)', re.DOTALL)
_OPEN_SHARDS = 64
# Reading headers over a network waits most of the time.
_SCANNERS = 8


class ShardError(UserError, ValueError):
    """Shards are missing, damaged or of a kind that cannot be read; the message names them."""


@DATASETS.register_module()
class ShardedImages(UnlabeledImages):
    """Images in tar archives, such as WebDataset's, in the order of the archives' names and of their members.

    Every member whose name is a key and one of the ``extensions`` is an image: ``folder/key.jpg``, but not
    ``key.seg.png``. Others are left out and reported. Archives are read at random positions, so that they must not be
    compressed and must be on a file system. Samples are those of :class:`UnlabeledImages`; their ``img_path``,
    ``tar:///data/shard-000000.tar/<position>+<size>/<name>``, can be opened by everything that reads files through
    MMEngine's file backends, such as all loading transforms.

    The headers of all archives are read once; their index is used until the name, size or modification time of an
    archive changes. For reads that are near to each other, set ``window`` of the :class:`ResumableSampler`.

    Args:
        data_root (str | Sequence[str]): Folders with archives, archives, or patterns: ``train-{000000..000146}.tar``,
            ``train-*.tar``.
        extensions (Sequence[str]): By default :data:`~mm_sop.datasets.image_files.EXTENSIONS`.
        index_file (str, optional): File of the index. By default a hidden file beside the first archive; if it cannot
            be written, the archives are scanned at every start.
        label (str, optional): Where the class of an image is, which becomes ``gt_label``: ``'cls'`` for a number in
            ``key.cls``, ``'json:name'`` for the field ``name`` of ``key.json``. ``metainfo`` may name the ``classes``.
        **kwargs: Other arguments of :class:`UnlabeledImages`.

    Raises:
        FileNotFoundError: A folder or an archive does not exist.
        ShardError: An archive is damaged, truncated or compressed, has no images, or an image lacks its label.

    Example:
        >>> import tarfile, tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new('RGB', (8, 6)).save(folder / 'a.png')
        >>> with tarfile.open(folder / 'shard-000000.tar', 'w') as shard:
        ...     shard.add(folder / 'a.png', 'birds/a.png')
        >>> dataset = ShardedImages(folder / 'shard-{000000..000000}.tar', [dict(type='mmpretrain.LoadImage')])
        >>> len(dataset), dataset[0]['img'].shape
        (1, (6, 8, 3))
    """

    METAINFO = dict(dataset_type='sharded_images')

    def __init__(
        self,
        data_root: str | Path | Sequence[str | Path],
        pipeline: Sequence = (),
        extensions: Sequence[str] = EXTENSIONS,
        label: str | None = None,
        **kwargs,
    ) -> None:
        if label is not None and label != 'cls' and not label.startswith('json:'):
            raise ValueError(f"label={label!r} of ShardedImages: expected 'cls' or 'json:<name of the field>'")
        self.label = label
        super().__init__(data_root, pipeline, extensions, **kwargs)

    def full_init(self) -> None:
        """Read the headers of the archives, or their index."""
        if self._fully_initialized:
            return
        self.shards = find_shards(self.folders)
        if self.index_file is None:
            self._find_index()
        super().full_init()

    def describe_source(self) -> dict:
        """Names, sizes and modification times of the archives, and what is read of them."""
        status = [(shard, shard.stat()) for shard in self.shards]
        shards = [[str(shard), found.st_size, found.st_mtime_ns] for shard, found in status]
        return dict(shards=shards, extensions=list(self.extensions), label=self.label)

    def list_paths(self) -> PathList:
        """Read the headers of all archives."""
        scan, left_out, paths, damaged = partial(_try_scan, self.extensions, self.label), Counter[str](), [], []
        with ThreadPoolExecutor(_SCANNERS) as pool:
            for number, (scanned, found) in enumerate(pool.map(scan, self.shards)):
                if isinstance(found, str):
                    damaged.append(found)
                else:
                    paths.append(found)
                left_out += scanned
                if (number + 1) % max(100, len(self.shards) // 20) == 0:
                    print_log(f'Headers of {number + 1} of {len(self.shards)} shards read', 'current')
        if damaged:
            raise ShardError(
                f'{len(damaged)} of {len(self.shards)} shards cannot be used: {shorten(damaged)}. Copy or write them '
                'again, or leave them out of `data_root`'
            )
        report_left_out(left_out, self.folders)
        joined = PathList.join(paths, shard=np.repeat(np.arange(len(paths), dtype=np.int32), list(map(len, paths))))
        if not len(joined):
            raise ShardError(
                f'no images in {len(self.shards)} shards, such as {self.shards[0]}: looked for '
                f'{" ".join(self.extensions)}'
            )
        return joined

    @property
    @force_full_init
    def shard_ids(self) -> np.ndarray:
        """Number of the archive of each image, int32, (N,)."""
        return self.paths.columns['shard']

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """``img_path``, ``sample_idx`` and, if there are labels, ``gt_label`` of one image."""
        info = super().get_data_info(idx)
        if self.label is not None:
            info['gt_label'] = int(self.paths.columns['gt_label'][info['sample_idx']])
        return info

    def _find_index(self) -> None:
        """Use an index beside the first shard, unless it is missing or out of date and cannot be written."""
        folder, settings = self.shards[0].parent, [list(map(str, self.folders)), self.extensions, self.label]
        name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        index = folder / f'.images-{name}.index'
        if os.access(folder, os.W_OK) or open_index(index, self.describe_source()) is not None:
            self.index_file = index
        else:
            print_log(
                f'{folder} cannot be written to, so that its {len(self.shards)} shards are scanned at every start: '
                'name a file for their index with `index_file`',
                'current',
                logging.WARNING,
            )


def holds_shards(root: str | Path) -> bool:
    """Whether this is an archive, a pattern of archives, or a folder with archives and neither images nor folders."""
    if str(root).endswith('.tar') and not Path(root).is_dir():
        return True
    if not Path(root).is_dir():
        return False
    found = [path for path in Path(root).iterdir() if not path.name.startswith('.')]
    others = (path.is_dir() or path.suffix.lower() in EXTENSIONS for path in found)
    return any(path.suffix == '.tar' for path in found) and not any(others)


def find_shards(roots: Iterable[str | Path]) -> list[Path]:
    """Find archives in folders, and those that names and patterns mean, in the order of ``roots`` and sorted in each.

    Raises:
        FileNotFoundError: A folder or an archive does not exist.
        ShardError: A folder has no archives, or a root is a URL or a compressed archive.
    """
    shards: list[Path] = []
    for root in map(str, roots):
        if '://' in root:
            raise ShardError(
                f'{root}: shards are read from file systems only, as the backends for URLs fetch whole files. Mount '
                'the storage (for example with s3fs or rclone), or copy the shards'
            )
        for name in _expand_braces(root):
            path = Path(os.path.abspath(name))  # noqa: PTH100  # does not follow links
            matches = [path] if path.exists() else [Path(found) for found in sorted(glob.glob(str(path)))]  # noqa: PTH207
            if not matches:
                raise FileNotFoundError(
                    f'there is no {path}: set `data_root` to a folder with shards or to their names'
                )
            for match in matches:
                shards += _list_folder(match) if match.is_dir() else [match]
    compressed = [shard.name for shard in shards if shard.name.lower().endswith(_COMPRESSED)]
    if compressed:
        raise ShardError(f'{_explain_compression(shorten(compressed))}')
    return shards


def _explain_compression(names: str) -> str:
    return f'{names}: compressed archives cannot be read at random positions; decompress them (images are compressed)'


def _list_folder(folder: Path) -> list[Path]:
    if folder.name.endswith(UNFINISHED):
        raise ShardError(f'{folder} is not complete: finish it with the command that began to write it')
    try:
        return [Path(path) for path in iterate_images(folder, ('.tar', *_COMPRESSED))]
    except ValueError:
        raise ShardError(f'no shards below {folder}: expected files named *.tar') from None


def _expand_braces(pattern: str) -> Iterator[str]:
    """Expand ``{000..123}`` and ``{a,b}`` like a shell."""
    match = re.search(r'\{([^{}]*)\}', pattern)
    numbers = re.fullmatch(r'(\d+)\.\.(\d+)', match[1]) if match else None
    if not match or not (numbers or ',' in match[1]) or Path(pattern).exists():
        yield pattern
        return
    if numbers:
        width = len(numbers[1]) if numbers[1].startswith('0') else 0
        choices: Iterable[str] = (f'{number:0{width}d}' for number in range(int(numbers[1]), int(numbers[2]) + 1))
    else:
        choices = match[1].split(',')
    for choice in choices:
        yield from _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def _try_scan(extensions: Sequence[str], label: str | None, shard: Path) -> tuple[Counter[str], PathList | str]:
    """Kinds that were left out, and images of one archive, or what is wrong with it."""
    left_out: Counter[str] = Counter()
    try:
        return left_out, _scan(shard, extensions, label, left_out)
    except (OSError, ValueError, tarfile.TarError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        return Counter(), printable(f'{shard} ({reason or error})')


def _scan(shard: Path, extensions: Sequence[str], label: str | None, left_out: Counter[str]) -> PathList:
    labels: list[int] = []

    def find_images() -> Iterator[str]:
        for key, group in groupby(read_members(shard, left_out), lambda member: member.key):
            members = list(group)
            images = [member for member in members if member.extension in extensions]
            for member in members:
                if member.extension not in (*extensions, '.cls', '.json'):
                    left_out[member.extension or 'no extension'] += 1
            if label is not None and images:
                labels.extend([_read_label(shard, key, members, label)] * len(images))
            for member in images:
                yield format_member(shard, member)

    paths = PathList.collect(find_images())
    return paths if label is None else PathList(paths.data, paths.ends, gt_label=np.array(labels, np.int64))


class Member(NamedTuple):
    """A regular file in an archive: name, and position and number of its bytes."""

    name: str
    start: int
    size: int

    @property
    def key(self) -> str:
        """Name up to the first dot of its last part, as in WebDataset."""
        folder, name = os.path.split(self.name)
        return os.path.join(folder, name.partition('.')[0])  # noqa: PTH118  # text

    @property
    def extension(self) -> str:
        """What follows the key, in lowercase, such as ``.seg.png``."""
        return self.name[len(self.key) :].lower()


def read_members(shard: str | Path, left_out: Counter[str] | None = None) -> Iterator[Member]:
    """Iterate over the regular files of an archive that are not hidden, without reading them; count special files.

    Raises:
        ValueError: The archive is compressed, damaged or truncated.
    """
    with open_regular(shard) as file:
        if file.read(6).startswith(_MAGIC):
            raise ValueError(_explain_compression('its content'))
        file.seek(0)
        try:
            archive = tarfile.TarFile(fileobj=file, mode='r')
            for entry in iter(archive.next, None):
                archive.members.clear()  # type: ignore[attr-defined]  # they would fill the memory
                if entry.isreg() and not entry.issparse():
                    # The start of the name says nothing; hidden files are those of macOS, mostly.
                    if not os.path.basename(entry.name).startswith('.'):  # noqa: PTH119
                        yield Member(entry.name.removeprefix('./'), entry.offset_data, entry.size)
                elif not entry.isdir() and left_out is not None:
                    left_out['links or special files'] += 1
        except tarfile.TarError as error:
            raise ValueError(f'damaged or truncated: {error}') from error
        _check_end(file, archive.offset)


def _check_end(file, position: int) -> None:
    """Refuse an archive without its end, where tarfile stops silently, as it does at a damaged header."""
    file.seek(position)
    trailer = file.read(_TRAILER)
    if len(trailer) < _BLOCK:
        raise ValueError('truncated: the end of the archive is missing')
    if trailer.strip(b'\0'):
        what = 'data after the end of the archive' if not trailer[:_BLOCK].strip(b'\0') else 'damaged header'
        raise ValueError(f'{what} at byte {position:,}')


def _read_label(shard: Path, key: str, members: Sequence[Member], label: str) -> int:
    kind, _, name = label.partition(':')
    member = next((member for member in members if member.extension == f'.{kind}'), None)
    if member is None:
        raise ValueError(f'{key} has no .{kind}')
    content = read_member(str(shard), member.start, member.size)
    try:
        return int(json.loads(content)[name] if name else content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{member.name} has no label {name}: {type(error).__name__}: {error}') from error


def format_member(shard: Path, member: Member) -> str:
    """Path of a member for MMEngine's file backends."""
    # MMEngine looks for `://` to find the kind of a path.
    return f'tar://{shard}/{member.start}+{member.size}/{member.name.replace("://", ":%2F%2F")}'


class MemberPath(NamedTuple):
    """What a path of :func:`format_member` says."""

    shard: str
    start: int
    size: int
    name: str


def parse_member(path: str) -> MemberPath | None:
    """Archive, position, size and name of an image in a shard; None for other paths."""
    match = _MEMBER.fullmatch(path)
    return match and MemberPath(match[1], int(match[2]), int(match[3]), match[4])


@register_backend('tar_member', prefixes='tar')
class TarMemberBackend(BaseStorageBackend):
    """Reads members of tar archives by the paths of :class:`ShardedImages`."""

    def get(self, filepath: str | Path) -> bytes:
        """Read a member."""
        member = parse_member(str(filepath))
        if member is None:
            raise ValueError(f'{filepath}: expected tar:///<archive>/<position>+<size>/<name>')
        return read_member(member.shard, member.start, member.size)

    def get_text(self, filepath: str | Path, encoding: str = 'utf-8') -> str:
        """Read a member as text."""
        return self.get(filepath).decode(encoding)


def read_member(shard: str, start: int, size: int) -> bytes:
    """Read bytes of an archive; a few archives stay open in each process."""
    archive, parts = _open_shard(shard), []
    while size and (part := os.pread(archive.descriptor, size, start)):
        parts.append(part)
        start, size = start + len(part), size - len(part)
    if size:
        raise OSError(errno.EIO, 'the shard has become shorter', shard)
    return parts[0] if len(parts) == 1 else b''.join(parts)


class _OpenShard:
    """A descriptor that is closed with the last reference. Forked processes may use it too: reads do not move it."""

    def __init__(self, path: str) -> None:
        with open_regular(path) as file:
            self.descriptor = os.dup(file.fileno())

    def __del__(self) -> None:
        if hasattr(self, 'descriptor'):
            os.close(self.descriptor)


_open_shard = lru_cache(_OPEN_SHARDS)(_OpenShard)
