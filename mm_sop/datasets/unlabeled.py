"""Any folder of images as a dataset for self-supervised training."""

import copy
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.dataset import force_full_init
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS

from mm_sop.datasets.image_files import EXTENSIONS, ImageFileDataset, iterate_images, report_left_out
from mm_sop.datasets.path_list import PathList
from mm_sop.datasets.shared_arrays import ArrayFileError, open_arrays, read_header, save_arrays
from mm_sop.utils.files import lock_beside, open_regular


@DATASETS.register_module()
class UnlabeledImages(ImageFileDataset):
    """Images below one or several folders, flat or nested, without labels.

    Ignores hidden files and folders, follows symbolic links, and reports once what else is left out because of its
    extension or because it cannot be read. The images are sorted by name, the same on every machine. The paths are
    stored in arrays that worker processes share, about 100 bytes per image; with an index file, all processes of a
    machine share them.

    Args:
        data_root (str | Sequence[str]): Folder or folders.
        extensions (Sequence[str]): By default :data:`~mm_sop.datasets.image_files.EXTENSIONS`.
        limit (int, optional): Use this many images, evenly spaced over the sorted ones, instead of all.
        indices (int | Sequence[int], optional): Use the first images or the given ones, applied after ``limit``.
        index_file (str, optional): File that stores the paths between runs, for folders that are slow to list. It is
            written if it is missing or was made for other folders or extensions; delete it after adding or removing
            images. Text files of earlier versions are converted.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: A folder contains no image, ``limit`` is out of range, or ``index_file`` is a file of another kind.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = tempfile.mkdtemp()
        >>> for number in range(6):
        ...     Image.new('RGB', (8, 8)).save(f'{folder}/{number}.png')
        >>> dataset = UnlabeledImages(folder, limit=3, pipeline=[dict(type='mmpretrain.LoadImage')])
        >>> [Path(dataset.get_data_info(index)['img_path']).name for index in range(len(dataset))]
        ['0.png', '2.png', '4.png']
        >>> dataset[0]['img'].shape
        (8, 8, 3)
    """

    METAINFO = dict(dataset_type='unlabeled_images')

    def __init__(
        self,
        data_root: str | Path | Sequence[str | Path],
        pipeline: Sequence = (),
        extensions: Sequence[str] = EXTENSIONS,
        limit: int | None = None,
        indices: int | Sequence[int] | None = None,
        index_file: str | Path | None = None,
        metainfo: dict | None = None,
        lazy_init: bool = False,
    ) -> None:
        self.folders = [data_root] if isinstance(data_root, str | Path) else list(data_root)
        if not self.folders:
            raise ValueError('UnlabeledImages: data_root is an empty list; give at least one folder')
        self.limit = limit
        self.index_file = index_file
        super().__init__(data_root, pipeline, extensions, indices=indices, metainfo=metainfo, lazy_init=lazy_init)

    @force_full_init
    def __len__(self) -> int:
        return len(self.paths)

    def full_init(self) -> None:
        """List the images, or read their list from the index file, and choose those of ``limit`` and ``indices``."""
        if self._fully_initialized:  # type: ignore[has-type]  # MMEngine has no types
            return
        paths = self.list_paths() if self.index_file is None else self._read_index(Path(self.index_file))
        if self.limit is not None:
            if not 0 < self.limit <= len(paths):
                raise ValueError(f'limit={self.limit}: expected 1 ... {len(paths)}, the number of images found')
            paths = paths.take(np.arange(self.limit) * len(paths) // self.limit)
        self.paths = paths if self._indices is None else paths.take(self._indices)
        self._fully_initialized = True

    def list_paths(self) -> PathList:
        """List the images of all folders, and report what is left out."""
        left_out: Counter[str] = Counter()
        paths = PathList.collect(
            path for folder in self.folders for path in iterate_images(folder, self.extensions, left_out)
        )
        report_left_out(left_out, self.folders)
        return paths

    def describe_source(self) -> dict:
        """Everything that the list of the images depends on, JSON-serializable; the header of the index file."""
        return dict(folders=[str(folder) for folder in self.folders], extensions=list(self.extensions))

    def _read_index(self, index: Path) -> PathList:
        """Map the list of the images from the index file, which is written first unless it has this list."""
        source = self.describe_source()
        paths = open_index(index, source)
        if paths is not None:
            return paths
        # The processes of a run start together; one of them lists the images for all.
        with lock_beside(index):
            paths = open_index(index, source)
            if paths is None:
                save_arrays(index, source, self.list_paths().arrays)
                paths = PathList(**open_arrays(index)[1])
        return paths

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """``img_path`` and ``sample_idx`` of one image; negative indices count from the end."""
        idx = range(len(self))[idx]
        return dict(img_path=self.paths[idx], sample_idx=idx)

    @force_full_init
    def get_subset(self, indices: int | Sequence[int]) -> 'UnlabeledImages':
        """The first images, the last ones for a negative number, or those with the given indices."""
        subset = copy.deepcopy(self)
        subset.get_subset_(indices)
        return subset

    @force_full_init
    def get_subset_(self, indices: int | Sequence[int]) -> None:
        """Like :meth:`get_subset`, in place."""
        self.paths = self.paths.take(indices)


def open_index(index: Path, source: dict) -> PathList | None:
    """Map an index file; None if it does not exist, is incomplete, or has the images of another source.

    Raises:
        ValueError: It is a file of another kind, which must not be overwritten.
    """
    if not index.exists() or not index.stat().st_size:
        return None
    with open_regular(index) as file:
        header = read_header(file)
        if header is not None and header.keys() == {'folders', 'extensions'}:
            # Earlier versions wrote one path per line; complete files end with a line break.
            lines = np.frombuffer(file.read(), np.uint8) if header == source else np.empty(0, np.uint8)
            if not len(lines) or lines[-1] != ord('\n'):
                return None
            save_arrays(index, source, PathList.from_lines(lines).arrays)
    try:
        found, arrays = open_arrays(index)
    except ArrayFileError as error:
        print_log(f'{error}: it is written again', 'current', logging.WARNING)
        return None
    except ValueError:
        raise ValueError(
            f'index_file={str(index)!r} is not an index of images, and is not overwritten: name a new file for the '
            'index, or delete this one'
        ) from None
    return PathList(**arrays) if found == source else None
