"""Labelled pictures that a list chooses."""

import errno
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path, PurePath

from mmpretrain.registry import DATASETS

from mm_sop.datasets.labelled_images import LabelledImages


@DATASETS.register_module()
class ListedImages(LabelledImages):
    """The pictures of a list, such as SimCLR's 1 % and 10 % of ImageNet.

    Args:
        data_root (str): Folder as for :class:`LabelledImages`; all of its folders are classes, listed or not.
        subset (str): Text file with one file name in each line, such as ``n01440764_10074.JPEG``, with as many of its
            folders as tell it from others.
        **kwargs: Further arguments of :class:`LabelledImages`.

    Raises:
        FileNotFoundError: The list does not exist.
        ValueError: It is empty, or names images that are not there, that may be several, or twice.
    """

    def __init__(self, data_root: str, subset: str, **kwargs) -> None:
        self.subset = subset
        super().__init__(data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read all pictures, and keep those of the list in its order."""
        items = super().load_data_list()
        files = [str(item['img_path']) for item in items]
        return [items[row] for row in rows_of_list(self.subset, files, self.data_root)]


def rows_of_list(path: str | Path, files: Sequence[str], root: str | Path) -> list[int]:
    """Where the images of a list stand among files.

    An entry chooses the file whose path ends with it, such as ``1.JPEG``, ``cat/1.JPEG`` or, without the extension,
    ``cat/1``. It may also start with other folders than the files, such as ``train/cat/1.JPEG``.

    Args:
        path: Text file with one entry in each line.
        files: Paths of images.
        root: Folder of the files; entries name files at least as exactly as their paths below it do, or are a part.

    Returns:
        Rows of ``files`` in the order of the list.

    Raises:
        FileNotFoundError: The list does not exist.
        ValueError: It is empty, or an entry stands for no file, for several, or for one that is listed already.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, 'no list of pictures', str(path))
    lines = Path(path).read_text(encoding='utf-8', errors='surrogateescape').splitlines()
    entries = [line.strip() for line in lines if line.strip()]
    if not entries:
        raise ValueError(f'{path} is empty: expected one file name in each line')
    rows = _match(path, entries, [PurePath(file) for file in files], Path(root))
    seen = {}
    for entry, row in zip(entries, rows, strict=True):
        if row in seen:
            raise ValueError(f'{path} names {files[row]} twice, as {seen[row]} and {entry}: leave one out')
        seen[row] = entry
    return rows


def _match(path: str | Path, entries: Sequence[str], files: Sequence[PurePath], root: Path) -> list[int]:
    by_name = {}
    for row, file in enumerate(files):
        for name in {file.name, file.stem}:
            by_name.setdefault(name, []).append(row)
    found = {entry: _choose(PurePath(entry), by_name, files, root) for entry in entries}
    missing = [entry for entry, rows in found.items() if not rows]
    if missing:
        raise ValueError(
            f'{path} names {len(missing)} pictures that are not in the training set, such as {missing[0]}: expected '
            f'one file name in each line, with as many of its folders as tell it from others'
        )
    for entry, rows in found.items():
        if len(rows) > 1:
            raise ValueError(
                f'{path}: {entry} may be {files[rows[0]]} or {files[rows[1]]}: write it with its folder, such as '
                f'{"/".join(files[rows[0]].parts[-2:])}'
            )
    return [found[entry][0] for entry in entries]


def _choose(entry: PurePath, by_name: dict[str, list[int]], files: Sequence[PurePath], root: Path) -> list[int]:
    """Rows of all files that an entry may mean: those that share most of its folders, with its extension first."""
    rows = by_name.get(entry.name, [])
    rows = [row for row in rows if files[row].name == entry.name] or rows
    shared = {row: _count_shared_folders(entry, files[row]) for row in rows}
    return [
        row
        for row, count in shared.items()
        if count == max(shared.values()) and count >= min(len(entry.parts), _depth(files[row], root)) - 1
    ]


def _count_shared_folders(entry: PurePath, file: PurePath) -> int:
    """Number of equal folders, counted from the end."""
    pairs = zip(reversed(entry.parts[:-1]), reversed(file.parts[:-1]), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _depth(file: PurePath, root: Path) -> int:
    """Number of parts of a path below the root."""
    return len(file.parts) - len(root.parts) if file.is_relative_to(root) else len(file.parts)
