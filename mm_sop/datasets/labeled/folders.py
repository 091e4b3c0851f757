"""Labeled images from class folders or file lists."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmpretrain.registry import DATASETS
from torch.utils.data import Dataset

from mm_sop.datasets.image_files import EXTENSIONS, ImageFileDataset


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
        pipeline (Sequence[dict | callable]): Transforms. Defaults to ().
        labels (str, optional): Text file with a path below the folder and the index of its class in each line, instead
            of class folders, such as MMPretrain's ``meta/val.txt`` for ImageNet; ``metainfo`` names the classes.
            Defaults to None.
        extensions (Sequence[str]): Extensions of image files, not used with file lists. Defaults to
            :data:`~mm_sop.datasets.image_files.EXTENSIONS`.
        indices (int | Sequence[int], optional): Use the first images or the given ones. Defaults to None.
        metainfo (dict, optional): Meta information. ``classes`` that contain the names found give the images the
            indices of these names, for example those of another dataset; as many names that all differ rename the
            classes in their order. Defaults to None.
        lazy_init (bool): Whether to list the images at the first access only. Defaults to False.

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
        super().__init__(
            data_root=str(data_root),
            pipeline=pipeline,
            extensions=extensions,
            indices=indices,
            metainfo=metainfo,
            test_mode=True,
            lazy_init=lazy_init,
        )

    @property
    def file_list(self) -> Path:
        """File that lists the images, if it exists."""
        return Path(os.path.normpath(self.data_root) + '.json')

    def load_data_list(self) -> list[dict]:
        """Read the file list or the class folders.

        Returns:
            ``img_path``, ``gt_label`` and, where known, ``identity`` of every image.
        """
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
                expected = f'a path and a class of 0 ... {num_classes - 1}'
                raise ValueError(f'{path}:{number} is {line!r}: expected {expected}')
            items.append(dict(img_path=str(Path(self.data_root, name)), gt_label=int(label)))
        return items

    def _read_file_list(self) -> tuple[Sequence[str], list[dict]]:
        try:
            content = json.loads(self.file_list.read_text(encoding='utf-8'))
            classes = content['classes']
            items = [self._parse_entry(entry, len(classes)) for entry in content['files']]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'file list {self.file_list} is malformed ({type(error).__name__}: {error}). Expected '
                '{"classes": [names], "files": [{"path": str, "label": int, "identity": int (optional)}, ...]}'
            ) from error
        if not items:
            raise ValueError(f'file list {self.file_list} names no images')
        return classes, items

    def _parse_entry(self, entry: dict, num_classes: int) -> dict:
        if not 0 <= entry['label'] < num_classes:
            raise ValueError(f'label {entry["label"]} of {entry["path"]} with {num_classes} classes')
        info = dict(img_path=str(self.file_list.parent / entry['path']), gt_label=entry['label'])
        return info | ({'identity': entry['identity']} if 'identity' in entry else {})

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
        paths = self.list_folders(folders)
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
                f'{self.data_root} has {_enumerate(missing)}, not among the {len(given)} classes of its metainfo '
                f'({_enumerate(given)}): give the names that are found, or as many new ones'
            )
        for item in items:
            item['gt_label'] = given.index(found[item['gt_label']])


def check_classes(datasets: Mapping[str, Dataset]) -> None:
    """Refuse datasets in which one label stands for different classes.

    Args:
        datasets: Datasets by name, whose labels are compared.

    Raises:
        ValueError: The class names of a dataset differ from those of the first one.
    """
    (first, known), *others = ((name, _read_classes(dataset)) for name, dataset in datasets.items())
    for name, classes in others:
        if classes != known:
            raise ValueError(
                f'{first} and {name} have different classes: {_describe_difference(first, known, name, classes)}. '
                'Equal labels would stand for different classes: use the same class folders, or number them alike with '
                'metainfo=dict(classes=[...])'
            )


def _read_classes(dataset: Dataset) -> tuple[str, ...] | None:
    # Names from folders or file lists are known only after the initialization.
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    return None if classes is None else tuple(map(str, classes))


def _describe_difference(first: str, known: Sequence[str] | None, second: str, found: Sequence[str] | None) -> str:
    if known is None or found is None:
        return f'{first if known is None else second} does not name its classes'
    only = {first: [name for name in known if name not in found], second: [name for name in found if name not in known]}
    parts = [f'{_enumerate(names)} only in {name}' for name, names in only.items() if names]
    return ', '.join(parts) or f'{_enumerate(known)} in {first} and {_enumerate(found)} in {second}'


def _enumerate(names: Sequence[str], count: int = 5) -> str:
    return ', '.join(names[:count]) + (f' and {len(names) - count} more' if len(names) > count else '')
