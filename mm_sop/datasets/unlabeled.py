"""Any folder of images as a dataset for self-supervised training."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.dataset import force_full_init
from mmpretrain.registry import DATASETS

from mm_sop.datasets.image_files import EXTENSIONS, ImageFileDataset
from mm_sop.utils.files import write_atomically


@DATASETS.register_module()
class UnlabeledImages(ImageFileDataset):
    """Images below one or several folders, flat or nested, without labels.

    Ignores hidden files and folders, follows symbolic links, and reports once what else is left out because of its
    extension or because it cannot be read. The images are sorted by name, the same on every machine. The paths are
    stored in one array that worker processes share, about 100 bytes per image.

    Args:
        data_root (str | Sequence[str]): Folder or folders.
        pipeline (Sequence[dict | callable]): Transforms. Defaults to ().
        extensions (Sequence[str]): Extensions of image files. Defaults to
            :data:`~mm_sop.datasets.image_files.EXTENSIONS`.
        limit (int, optional): Use this many images, evenly spaced over the sorted ones. Defaults to None, all.
        indices (int | Sequence[int], optional): Use the first images or the given ones, applied after ``limit``.
            Defaults to None.
        index_file (str, optional): Text file that stores the paths between runs, for folders that are slow to list.
            It is written if it is missing or was made for other folders or extensions; delete it after adding or
            removing images. Defaults to None.
        metainfo (dict, optional): Meta information. Defaults to None.
        lazy_init (bool): Whether to list the folders at the first access only. Defaults to False.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: A folder contains no image, or ``limit`` is out of range.

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

    def load_data_list(self) -> list[str]:
        """List the images, or read the index file.

        Returns:
            Paths.
        """
        paths = self._read_index()
        if paths is None:
            paths = [path for paths in self.list_folders(self.folders) for path in paths]
            self._write_index(paths)
        if self.limit is None:
            return paths
        if not 0 < self.limit <= len(paths):
            raise ValueError(f'limit={self.limit}: expected 1 ... {len(paths)}, the number of images found')
        return [paths[position] for position in np.arange(self.limit) * len(paths) // self.limit]

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Path and index of one image.

        Args:
            idx (int): Index; negative ones count from the end.

        Returns:
            dict: ``img_path`` and ``sample_idx``.
        """
        idx = range(len(self))[idx]
        start = self.data_address[idx - 1] if idx else 0
        path = self.data_bytes[start : self.data_address[idx]].tobytes()
        return dict(img_path=os.fsdecode(path), sample_idx=idx)

    def _serialize_data(self) -> tuple[np.ndarray, np.ndarray]:
        """Join the bare paths: pickling one dictionary per path, as MMEngine does, takes longer than listing them."""
        encoded = [os.fsencode(path) for path in self.data_list]
        self.data_list.clear()
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.frombuffer(b''.join(encoded), np.uint8), np.cumsum(lengths)

    @property
    def _index_header(self) -> str:
        return json.dumps(dict(folders=[str(folder) for folder in self.folders], extensions=self.extensions))

    def _read_index(self) -> list[str] | None:
        """Stored paths, or None if there are none for these folders and extensions."""
        if self.index_file is None or not Path(self.index_file).exists():
            return None
        header, *paths = os.fsdecode(Path(self.index_file).read_bytes()).split('\n')
        # A complete file ends with a line break.
        return paths[:-1] if header == self._index_header and paths and not paths[-1] else None

    def _write_index(self, paths: Sequence[str]) -> None:
        if self.index_file is None:
            return
        text = '\n'.join([self._index_header, *paths, ''])
        if text.count('\n') != len(paths) + 1:
            raise ValueError('a file name contains a line break: rename that file or do without `index_file`')
        write_atomically(self.index_file, os.fsencode(text))
