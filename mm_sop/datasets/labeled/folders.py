"""Labeled images from class folders or file lists."""

import errno
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePath

from mmpretrain.registry import DATASETS
from torch.utils.data import Dataset

from mm_sop.datasets.image_files import EXTENSIONS, ImageFileDataset, list_folders, shorten


@DATASETS.register_module()
class LabeledImages(ImageFileDataset):
    """Images with a class label and, where known, the identity of the object shown.

    If there is a file ``<data_root>.json`` next to the folder, it is the file list::

        {
            "classes": ["birds", "fish"],
            "files": [{"path": "test/birds/owl_0.png", "label": 0, "identity": 7}, ...]
        }

    with paths relative to the folder of the file list; ``identity`` is optional. Otherwise every direct subfolder is a
    class, in sorted order. ``gt_label`` is the index of the class; ``metainfo['classes']`` are the names.

    Args:
        data_root (str): Folder of the images.
        labels (str, optional): Text file with a path below the folder and the index of its class in each line, instead
            of class folders, such as MMPretrain's ``meta/val.txt`` for ImageNet; ``metainfo`` names the classes.
        extensions (Sequence[str]): By default :data:`~mm_sop.datasets.image_files.EXTENSIONS`; not for file lists.
        metainfo (dict, optional): Meta information. ``classes`` that contain the names found give the images the
            indices of these names, for example those of another dataset; as many names that all differ rename the
            classes in their order.

    Raises:
        FileNotFoundError: Neither the folder nor a file list exists.
        ValueError: There is no class folder or no image, a file list is malformed, or the given classes do not fit.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ('cat', 'dog'):
        ...     (folder / name).mkdir()
        ...     Image.new('RGB', (8, 8)).save(folder / name / '0.png')
        >>> dataset = LabeledImages(folder)
        >>> dataset.metainfo['classes'], dataset.get_data_info(1)['gt_label']
        (('cat', 'dog'), 1)
        >>> LabeledImages(folder, metainfo=dict(classes=['dog', 'cat'])).get_data_info(1)['gt_label']
        0
    """

    METAINFO = dict(dataset_type='labeled_images')

    def __init__(
        self,
        data_root: str | Path,
        pipeline: Sequence = (),
        labels: str | Path | None = None,
        extensions: Sequence[str] = EXTENSIONS,
        indices: int | Sequence[int] | None = None,
        metainfo: dict | None = None,
        lazy_init: bool = False,
    ) -> None:
        self.labels = labels
        given = dict(indices=indices, metainfo=metainfo, lazy_init=lazy_init)
        super().__init__(str(data_root), pipeline, extensions, test_mode=True, **given)

    @property
    def file_list(self) -> Path:
        """File that lists the images, if it exists."""
        return Path(os.path.normpath(self.data_root) + '.json')

    def load_data_list(self) -> list[dict]:
        """Read ``img_path``, ``gt_label`` and, where known, ``identity`` of every image."""
        if self.labels is not None:
            return self._read_labels(self.labels)
        classes, items = self._read_file_list() if self.file_list.is_file() else self._read_folders()
        if 'classes' in self._metainfo:
            self._renumber(items, classes)
        else:
            self._metainfo['classes'] = tuple(classes)
        return items

    def _read_labels(self, path: str | Path) -> list[dict]:
        if 'classes' not in self._metainfo:
            raise ValueError(f'{path} gives numbers of classes: name them with metainfo=dict(classes=[...])')
        num_classes, items = len(self._metainfo['classes']), []
        lines = os.fsdecode(Path(path).read_bytes()).rstrip('\n').split('\n')
        for number, line in enumerate(lines, start=1):
            name, _, label = line.strip().rpartition(' ')
            if not name or not label.isdecimal() or int(label) >= num_classes:
                raise ValueError(f'{path}:{number} is {line!r}: expected a path and a class of 0 ... {num_classes - 1}')
            items.append(dict(img_path=str(Path(self.data_root, name)), gt_label=int(label)))
        return items

    def _read_file_list(self) -> tuple[Sequence[str], list[dict]]:
        try:
            content = json.loads(self.file_list.read_text(encoding='utf-8'))
            classes, items = content['classes'], []
            for entry in content['files']:
                if not 0 <= entry['label'] < len(classes):
                    raise ValueError(f'label {entry["label"]} of {entry["path"]} with {len(classes)} classes')
                items.append(dict(img_path=str(self.file_list.parent / entry['path']), gt_label=entry['label']))
                if 'identity' in entry:
                    items[-1]['identity'] = entry['identity']
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'file list {self.file_list} is malformed ({type(error).__name__}: {error}). Expected '
                '{"classes": [names], "files": [{"path": str, "label": int, "identity": int (optional)}, ...]}'
            ) from error
        if not items:
            raise ValueError(f'file list {self.file_list} names no images')
        return classes, items

    def _read_folders(self) -> tuple[Sequence[str], list[dict]]:
        root = Path(self.data_root)
        if not root.is_dir():
            raise FileNotFoundError(
                f'neither folder {root.absolute()} nor file list {self.file_list.absolute()} exists'
            )
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith('.'))
        if not folders:
            raise ValueError(
                f'{root.absolute()} has no class folders: expected {root}/<class>/<image> or a file list '
                f'{self.file_list}'
            )
        paths = list_folders(folders, self.extensions, self.data_root)
        items = [dict(img_path=path, gt_label=label) for label, each in enumerate(paths) for path in each]
        return [folder.name for folder in folders], items

    def _renumber(self, items: list[dict], found: Sequence[str]) -> None:
        """Label the images with the indices of their classes among the given names."""
        given = [str(name) for name in self._metainfo['classes']]
        missing = [name for name in found if name not in given]
        if len(missing) == len(found) == len(given):
            return
        if missing:
            raise ValueError(
                f'{self.data_root} has {shorten(missing)}, not among the {len(given)} classes of its metainfo '
                f'({shorten(given)}): give the names that are found, or as many new ones'
            )
        for item in items:
            item['gt_label'] = given.index(found[item['gt_label']])


@DATASETS.register_module()
class ListedImages(LabeledImages):
    """The images of a file list, such as SimCLR's 1 % and 10 % of ImageNet.

    Args:
        data_root (str): Folder as for :class:`LabeledImages`; all of its folders are classes, listed or not.
        subset (str): Text file with one file name per line, such as ``n01440764_10074.JPEG``, see
            :func:`rows_of_list`.
        **kwargs: Other arguments of :class:`LabeledImages`.
    """

    def __init__(self, data_root: str | Path, subset: str | Path, **kwargs) -> None:
        self.subset = subset
        super().__init__(data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Select the images of the file list, in its order."""
        items = super().load_data_list()
        rows = rows_of_list(self.subset, [item['img_path'] for item in items], self.data_root)
        return [items[row] for row in rows]


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
    paths, by_name = [PurePath(file) for file in files], defaultdict(list)
    for row, file in enumerate(paths):
        for name in {file.name, file.stem}:
            by_name[name].append(row)
    found = [_candidates(PurePath(entry), by_name, paths, Path(root)) for entry in entries]
    missing = [entry for entry, rows in zip(entries, found, strict=True) if not rows]
    if missing:
        raise ValueError(
            f'{path} names {len(missing)} images that are not in the training set, such as {missing[0]}: expected '
            'one file name in each line, with as many of its folders as needed to be unique'
        )
    entry_of_row: dict[int, str] = {}
    for entry, (row, *others) in zip(entries, found, strict=True):
        if others:
            raise ValueError(
                f'{path}: {entry} may be {files[row]} or {files[others[0]]}: write it with its folder, such as '
                f'{"/".join(paths[row].parts[-2:])}'
            )
        if row in entry_of_row:
            raise ValueError(f'{path} names {files[row]} twice, as {entry_of_row[row]} and {entry}: leave one out')
        entry_of_row[row] = entry
    return list(entry_of_row)


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


def check_classes(datasets: Mapping[str, Dataset]) -> None:
    """Refuse datasets, given by name, in which one label stands for different classes.

    Raises:
        ValueError: The class names of a dataset differ from those of the first one.
    """
    named: dict[str, tuple[str, ...] | None] = {}
    for name, dataset in datasets.items():
        # Names from folders or file lists are known only after the initialization.
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        classes = getattr(dataset, 'metainfo', {}).get('classes')
        named[name] = None if classes is None else tuple(map(str, classes))
    (first, known), *others = named.items()
    for name, found in others:
        if found != known:
            raise ValueError(
                f'{first} and {name} have different classes: {_describe_difference(first, known, name, found)}. '
                'Equal labels would stand for different classes: use the same class folders, or number them alike with '
                'metainfo=dict(classes=[...])'
            )


def _describe_difference(first: str, known: Sequence[str] | None, second: str, found: Sequence[str] | None) -> str:
    if known is None or found is None:
        return f'{first if known is None else second} does not name its classes'
    only = {first: [name for name in known if name not in found], second: [name for name in found if name not in known]}
    parts = [f'{shorten(names)} only in {name}' for name, names in only.items() if names]
    return ', '.join(parts) or f'{shorten(known)} in {first} and {shorten(found)} in {second}'
