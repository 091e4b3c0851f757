"""Originals and their copies in the layout of Copydays."""

from dataclasses import dataclass
from pathlib import Path

from mm_sop.datasets.unlabelled_images import list_images

# The first digits of a name say which original it shows.
_BLOCK_DIGITS = 4


@dataclass(frozen=True)
class CopySet:
    """Originals and edited versions of them.

    Attributes:
        originals: Files that are searched.
        paths: Files of the copies.
        kinds: Kind of edit of every copy: ``'strong'``, or for instance ``'jpegqual/3'``.
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
            ``crops/<per cent removed>/``.

    Raises:
        FileNotFoundError: ``original/`` or ``strong/`` is missing or empty.
        ValueError: A copy has no original, or originals share their first digits.
    """
    folder = Path(folder)
    kinds = ['strong']
    for series in ('jpegqual', 'crops'):
        kinds += [f'{series}/{value}' for value in sorted(_numbers(folder / series))]
    originals = _list(folder, 'original')
    copies = [(kind, path) for kind in kinds for path in _list(folder, kind)]
    rows = {_block(path): row for row, path in enumerate(originals)}
    if len(rows) < len(originals):
        raise ValueError(
            f'{folder}/original has several pictures whose names begin with the same {_BLOCK_DIGITS} digits'
        )
    paths = [path for _, path in copies]
    return CopySet(originals, paths, [kind for kind, _ in copies], [_find(rows, path) for path in paths])


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.glob('*') if path.name.isdigit()]


def _list(folder: Path, kind: str) -> list[Path]:
    if not (folder / kind).is_dir():
        raise FileNotFoundError(
            f'{folder / kind} does not exist: expected the layout of Copydays, original/200000.jpg, strong/200001.jpg, '
            'jpegqual/<quality>/200000.jpg and crops/<per cent removed>/200000.jpg'
        )
    return [Path(path) for path in list_images(folder / kind)]


def _block(path: Path) -> str:
    return path.stem[:_BLOCK_DIGITS]


def _find(rows: dict[str, int], path: Path) -> int:
    if _block(path) not in rows:
        raise ValueError(f'{path} is a copy of {_block(path)}, which original/ does not have')
    return rows[_block(path)]
