"""Labelled pictures that a list chooses."""

import errno
from collections.abc import Sequence
from pathlib import Path

from mmpretrain.registry import DATASETS

from mm_sop.datasets.labelled_images import LabelledImages


@DATASETS.register_module()
class ListedImages(LabelledImages):
    """The pictures of a list, such as SimCLR's 1 % and 10 % of ImageNet.

    Args:
        data_root (str): Folder as for :class:`LabelledImages`; all of its folders are classes, listed or not.
        subset (str): Text file with one file name in each line, such as ``n01440764_10074.JPEG``, without its folder.
        **kwargs: Further arguments of :class:`LabelledImages`.

    Raises:
        FileNotFoundError: The list does not exist.
        ValueError: It is empty, or names pictures that are not there.
    """

    def __init__(self, data_root: str, subset: str, **kwargs) -> None:
        self.subset = subset
        super().__init__(data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read all pictures, and keep those of the list in its order."""
        items = super().load_data_list()
        return [items[row] for row in rows_of_list(self.subset, [str(item['img_path']) for item in items])]


def rows_of_list(path: str | Path, files: Sequence[str]) -> list[int]:
    """Where the pictures of a list stand among files.

    Args:
        path: Text file with one file name in each line; folders do not matter.
        files: Paths of pictures, with different file names.

    Returns:
        Rows of ``files`` in the order of the list.

    Raises:
        FileNotFoundError: The list does not exist.
        ValueError: It is empty, or names pictures that are not among the files.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, 'no list of pictures', str(path))
    names = [Path(line.strip()).name for line in Path(path).read_text().splitlines() if line.strip()]
    rows = {Path(file).name: row for row, file in enumerate(files)}
    missing = [name for name in names if name not in rows]
    if not names:
        raise ValueError(f'{path} is empty: expected one file name in each line')
    if missing:
        raise ValueError(
            f'{path} names {len(missing)} pictures that are not in the training set, such as {missing[0]}: expected '
            'one file name in each line'
        )
    return [rows[name] for name in names]
