"""Originals and copies in the layout of Copydays."""

from dataclasses import dataclass
from pathlib import Path

from mm_sop.datasets.image_files import list_images

# Number of leading digits that an original and its copies have in common.
_BLOCK_DIGITS = 4


@dataclass(frozen=True)
class CopySet:
    """Originals and edited versions of them.

    Attributes:
        originals: Files of the originals, the database of the search.
        paths: Files of the copies, the queries.
        kinds: Kind of edit of every copy: ``'strong'``, or for example ``'jpegqual/3'``.
        sources: Index of every copy's original.
    """

    originals: list[Path]
    paths: list[Path]
    kinds: list[str]
    sources: list[int]


def read_copydays(folder: str | Path) -> CopySet:
    """List originals and copies.

    Args:
        folder: Folder with ``original/``, ``strong/`` and, where they exist, ``jpegqual/<quality>/`` and
            ``crops/<percent removed>/``.

    Raises:
        FileNotFoundError: ``original/`` or ``strong/`` is missing or empty.
        ValueError: A copy has no original, or originals share their first digits.
    """
    folder = Path(folder)
    kinds = ['original', 'strong']
    for series in ('jpegqual', 'crops'):
        values = sorted(int(path.name) for path in (folder / series).glob('*') if path.name.isdigit())
        kinds += [f'{series}/{value}' for value in values]
    files: dict[str, list[Path]] = {}
    for kind in kinds:
        if not (folder / kind).is_dir():
            raise FileNotFoundError(
                f'{folder / kind} does not exist: expected the layout of Copydays, original/200000.jpg, '
                'strong/200001.jpg, jpegqual/<quality>/200000.jpg and crops/<percent removed>/200000.jpg'
            )
        files[kind] = [Path(path) for path in list_images(folder / kind)]
    originals = files.pop('original')
    rows = {path.stem[:_BLOCK_DIGITS]: row for row, path in enumerate(originals)}
    if len(rows) < len(originals):
        raise ValueError(f'{folder}/original has several images whose names start with the same {_BLOCK_DIGITS} digits')
    copies = CopySet(originals, [], [], [])
    for kind, path in ((kind, path) for kind, paths in files.items() for path in paths):
        block = path.stem[:_BLOCK_DIGITS]
        if block not in rows:
            raise ValueError(f'{path} is a copy of {block}, which original/ does not have')
        copies.paths.append(path)
        copies.kinds.append(kind)
        copies.sources.append(rows[block])
    return copies
