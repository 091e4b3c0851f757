"""Labeled images that a file list selects."""

import errno
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePath

from mmpretrain.registry import DATASETS

from mm_sop.datasets.labeled.folders import LabeledImages


@DATASETS.register_module()
class ListedImages(LabeledImages):
    """The images of a file list, such as SimCLR's 1 % and 10 % of ImageNet.

    Args:
        data_root (str): Folder as for :class:`LabeledImages`; all of its folders are classes, listed or not.
        subset (str): Text file with one file name per line, such as ``n01440764_10074.JPEG``, with as many of its
            folders as needed to be unique.
        **kwargs: Other arguments of :class:`LabeledImages`.

    Raises:
        FileNotFoundError: The file list does not exist.
        ValueError: It is empty, or has an entry that matches no image, several images, or the image of another entry.
    """

    def __init__(self, data_root: str | Path, subset: str | Path, **kwargs) -> None:
        self.subset = subset
        super().__init__(data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Select the images of the file list, in its order."""
        items = super().load_data_list()
        files = [str(item['img_path']) for item in items]
        return [items[row] for row in rows_of_list(self.subset, files, self.data_root)]


def rows_of_list(path: str | Path, files: Sequence[str], root: str | Path) -> list[int]:
    """Find the files that a file list selects.

    An entry selects the file whose path ends with it, such as ``1.JPEG``, ``cat/1.JPEG`` or, without the extension,
    ``cat/1``. It may also start with other folders than the files, such as ``train/cat/1.JPEG``.

    Args:
        path: Text file with one entry per line.
        files: Paths of images.
        root: Folder of the files. An entry contains, or is contained in, the path of its file below this folder.

    Returns:
        Indices into ``files`` in the order of the file list.

    Raises:
        FileNotFoundError: The file list does not exist.
        ValueError: It is empty, or has an entry that matches no file, several files, or the file of another entry.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), 'list.txt')
        >>> _ = path.write_text('dog/1.jpg 2'.replace(' ', chr(10)))
        >>> rows_of_list(path, ['/data/cat/1.jpg', '/data/dog/1.jpg', '/data/dog/2.jpg'], '/data')
        [1, 2]
    """
    if not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, 'no list of images', str(path))
    lines = Path(path).read_text(encoding='utf-8', errors='surrogateescape').splitlines()
    entries = [line.strip() for line in lines if line.strip()]
    if not entries:
        raise ValueError(f'{path} is empty: expected one file name in each line')
    rows = _match(path, entries, [PurePath(file) for file in files], Path(root))
    seen: dict[int, str] = {}
    for entry, row in zip(entries, rows, strict=True):
        if row in seen:
            raise ValueError(f'{path} names {files[row]} twice, as {seen[row]} and {entry}: leave one out')
        seen[row] = entry
    return rows


def _match(path: str | Path, entries: Sequence[str], files: Sequence[PurePath], root: Path) -> list[int]:
    by_name = defaultdict(list)
    for row, file in enumerate(files):
        for name in {file.name, file.stem}:
            by_name[name].append(row)
    found = {entry: _candidates(PurePath(entry), by_name, files, root) for entry in entries}
    missing = [entry for entry, rows in found.items() if not rows]
    if missing:
        raise ValueError(
            f'{path} names {len(missing)} images that are not in the training set, such as {missing[0]}: expected '
            'one file name in each line, with as many of its folders as needed to be unique'
        )
    for entry, rows in found.items():
        if len(rows) > 1:
            raise ValueError(
                f'{path}: {entry} may be {files[rows[0]]} or {files[rows[1]]}: write it with its folder, such as '
                f'{"/".join(files[rows[0]].parts[-2:])}'
            )
    return [found[entry][0] for entry in entries]


def _candidates(entry: PurePath, by_name: Mapping[str, list[int]], files: Sequence[PurePath], root: Path) -> list[int]:
    """All files that an entry may stand for: those with most folders in common; equal extensions take precedence."""
    rows = by_name.get(entry.name, [])
    rows = [row for row in rows if files[row].name == entry.name] or rows
    # Number of equal folders, counted from the end, and number of parts below the root.
    shared, depths = {}, {}
    for row in rows:
        file = files[row]
        pairs = zip(reversed(entry.parts[:-1]), reversed(file.parts[:-1]), strict=False)
        shared[row] = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        depths[row] = len(file.parts) - (len(root.parts) if file.is_relative_to(root) else 0)
    return [
        row
        for row, count in shared.items()
        if count == max(shared.values()) and count >= min(len(entry.parts), depths[row]) - 1
    ]
