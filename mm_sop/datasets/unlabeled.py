"""Any folder of images as a dataset for self-supervised training."""

import json
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from mmengine.dataset import force_full_init
from mmpretrain.registry import DATASETS

from mm_sop.datasets.image_files import EXTENSIONS, ImageFileDataset, list_folders
from mm_sop.utils.files import write_atomically


@DATASETS.register_module()
class UnlabeledImages(ImageFileDataset):
    """Images below one or several folders, flat or nested, without labels.

    Ignores hidden files and folders, follows symbolic links, and reports once what else is left out because of its
    extension or because it cannot be read. The images are sorted by name, the same on every machine. The paths are
    stored in one array that worker processes share, about 100 bytes per image.

    Args:
        data_root (str | Sequence[str]): Folder or folders.
        extensions (Sequence[str]): By default :data:`~mm_sop.datasets.image_files.EXTENSIONS`.
        limit (int, optional): Use this many images, evenly spaced over the sorted ones, instead of all.
        indices (int | Sequence[int], optional): Use the first images or the given ones, applied after ``limit``.
        index_file (str, optional): Text file that stores the paths between runs, for folders that are slow to list.
            It is written if it is missing or was made for other folders or extensions; delete it after adding or
            removing images.

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
        """List the paths of the images, or read them from the index file."""
        index = None if self.index_file is None else Path(self.index_file)
        header = json.dumps(dict(folders=[str(folder) for folder in self.folders], extensions=self.extensions))
        text = os.fsdecode(index.read_bytes()) if index and index.exists() else ''
        # A complete file ends with a line break.
        if text.startswith(f'{header}\n') and text.endswith('\n'):
            paths = text.split('\n')[1:-1]
        else:
            paths = list(chain(*list_folders(self.folders, self.extensions, self.folders)))
            if index:
                text = '\n'.join([header, *paths, ''])
                if text.count('\n') != len(paths) + 1:
                    raise ValueError('a file name contains a line break: rename that file or do without `index_file`')
                write_atomically(index, os.fsencode(text))
        if self.limit is None:
            return paths
        if not 0 < self.limit <= len(paths):
            raise ValueError(f'limit={self.limit}: expected 1 ... {len(paths)}, the number of images found')
        return [paths[position] for position in np.arange(self.limit) * len(paths) // self.limit]

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """``img_path`` and ``sample_idx`` of one image; negative indices count from the end."""
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
