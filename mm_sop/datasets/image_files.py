"""Lists image files of folders; base of all datasets of image files."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from mm_sop.utils.files import printable

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.ppm', '.pgm', '.tif', '.tiff')

# Kinds that are left out, besides files with other extensions.
_BROKEN_LINK = 'links that cannot be followed'
_SPECIAL_FILE = 'neither files nor folders'
_UNREADABLE_FOLDER = 'unreadable folders'

# Names of a folder that are sorted without a Python object for each.
_MANY = 2**16

_Paths = Sequence[str | Path]
_warn_once = lru_cache(maxsize=1024)(print_log)


class ImageFileDataset(BaseDataset):
    """Base of datasets of image files, which :class:`LoadImage` opens.

    Its arguments are ``extensions``, in upper or lower case, and those of MMEngine's ``BaseDataset``.
    """

    def __init__(
        self,
        data_root: str | Path | _Paths | None = None,
        pipeline: Sequence[dict | Callable] = (),
        extensions: Sequence[str] = EXTENSIONS,
        **kwargs,
    ) -> None:
        self.extensions = tuple(extension.lower() for extension in extensions)
        super().__init__(data_root=data_root, data_prefix={}, pipeline=list(pipeline), **kwargs)


class ImageFiles(ImageFileDataset):
    """Given files in their order: samples with ``img_path`` and, if boxes are given, ``box`` (x1, y1, x2, y2)."""

    def __init__(
        self, paths: _Paths, pipeline: Sequence[dict | Callable], boxes: Sequence[Sequence[float]] | None = None
    ) -> None:
        self.paths = list(paths)
        self.boxes = boxes
        super().__init__(pipeline=pipeline, serialize_data=False)

    def load_data_list(self) -> list[dict]:
        """Samples as the pipeline receives them."""
        if self.boxes is None:
            return [dict(img_path=str(path)) for path in self.paths]
        return [dict(img_path=str(path), box=box) for path, box in zip(self.paths, self.boxes, strict=True)]


def list_images(folder: str | Path, extensions: Sequence[str] = EXTENSIONS) -> list[str]:
    """List all images below a folder, see :func:`iterate_images`, and report what is left out.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ('b.png', 'a.JPG', 'more/c.png'):
        ...     (folder / name).parent.mkdir(exist_ok=True)
        ...     (folder / name).touch()
        >>> [str(Path(path).relative_to(folder)) for path in list_images(folder)]
        ['a.JPG', 'b.png', 'more/c.png']
    """
    return list_folders([folder], extensions, folder)[0]


def list_folders(folders: _Paths, extensions: Sequence[str], root: str | Path | _Paths) -> list[list[str]]:
    """List the images below each of several folders, and report in one message for ``root`` what is left out."""
    left_out: Counter[str] = Counter()
    paths = [list(iterate_images(folder, extensions, left_out)) for folder in folders]
    report_left_out(left_out, root)
    return paths


def report_left_out(left_out: Counter[str], root: str | Path | _Paths) -> None:
    """Warn once of files below one or several folders that are not used, counted by kind."""
    if left_out and is_main_process():
        names = printable(str(root) if isinstance(root, str | Path) else ', '.join(map(str, root)))
        message = f'{names}: left out {_describe(left_out)}. Only files with one of the `extensions` are used'
        _warn_once(message, 'current', logging.WARNING)


def iterate_images(
    folder: str | Path, extensions: Sequence[str] = EXTENSIONS, left_out: Counter[str] | None = None
) -> Iterator[str]:
    """Iterate over all images below a folder: of each folder first the files, then the subfolders, sorted by name.

    Ignores hidden files and folders. Follows symbolic links, and skips links that lead nowhere and subfolders that
    cannot be read. The paths start with ``folder``.

    Args:
        folder: Where to look.
        extensions: Extensions of image files, in lowercase.
        left_out: Counts what is not an image, by extension or kind.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: It contains no image.
        OSError: The folder itself cannot be read.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        kind = 'is a file' if root.exists() else 'does not exist'
        raise FileNotFoundError(f'data folder {root} {kind}: set `data_root` to a folder with images')
    extensions = tuple(extensions)
    left_out = Counter() if left_out is None else left_out
    before, found, visited, pending = left_out.copy(), False, set(), [str(folder)]
    while pending:
        current = pending.pop()
        try:
            status = os.stat(current)  # noqa: PTH116  # strings, because creating paths takes longer than listing them
            if (status.st_dev, status.st_ino) in visited:  # a symbolic link back to a parent
                continue
            visited.add((status.st_dev, status.st_ino))
            files, subfolders = _scan(current, left_out)
        except OSError:
            if current == str(folder):
                raise
            left_out[_UNREADABLE_FOLDER] += 1
            continue
        pending += reversed(subfolders)
        for path in files:
            if path.lower().endswith(extensions):
                found = True
                yield path
            else:
                left_out[Path(path).suffix.lower() or 'no extension'] += 1
    if not found:
        seen = _describe(left_out - before) or 'no files at all'
        raise ValueError(
            f'no images below {root}: looked for {" ".join(extensions)}, found {seen}. '
            'Correct `data_root`, or name the extensions of your files in `extensions`'
            + ("; the dataset for .tar files is type='ShardedImages'" if '.tar' in left_out - before else '')
        )


def _scan(folder: str, left_out: Counter[str]) -> tuple[Iterator[str], list[str]]:
    """Sorted paths of files and of subfolders, without hidden ones; counts what is neither."""
    prefix, subfolders = os.path.join(folder, ''), []  # noqa: PTH118

    def scan_files() -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[0] == '.':
                    continue
                try:
                    if entry.is_dir():
                        subfolders.append(entry.name)
                    elif entry.is_file():
                        yield entry.name
                    else:
                        left_out[_SPECIAL_FILE if Path(entry.path).exists() else _BROKEN_LINK] += 1
                except OSError:  # a link to itself, or into a folder without permission
                    left_out[_BROKEN_LINK] += 1

    files = _sort_names(scan_files())
    return (prefix + name for name in files), [prefix + name for name in sorted(subfolders)]


def _sort_names(names: Iterator[str]) -> Iterator[str]:
    """Sort file names; many of them as arrays of bytes, whose order is the same, instead of Python objects."""
    chunk = list(islice(names, _MANY))
    if len(chunk) < _MANY:
        return iter(sorted(chunk))
    chunks = []
    while chunk:
        # Also encodes what stands for undecodable bytes. Neither names nor their encoding contain zeros.
        chunks.append(np.array([name.encode(errors='surrogatepass') for name in chunk]))
        chunk = list(islice(names, _MANY))
    encoded = np.concatenate(chunks)
    chunks.clear()
    encoded.sort()
    blocks = (encoded[start : start + _MANY].tolist() for start in range(0, len(encoded), _MANY))
    return (name.decode(errors='surrogatepass') for name in chain.from_iterable(blocks))


def _describe(left_out: Counter[str]) -> str:
    return shorten([f'{count} x {printable(kind)}' for kind, count in left_out.most_common()], 8)


def shorten(names: Sequence[str], count: int = 5) -> str:
    """Join the first names, and tell how many more there are."""
    return ', '.join(names[:count]) + (f' and {len(names) - count} more' if len(names) > count else '')
