"""Labelled pictures for evaluation, from class folders or from a JSON listing."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.dataset import BaseDataset
from mmpretrain.registry import DATASETS
from torch.utils.data import Dataset

from mm_sop.datasets.unlabelled_images import EXTENSIONS, list_images, report_left_out


@DATASETS.register_module()
class LabelledImages(BaseDataset):
    """Pictures with a class label and, where known, the identity of the object shown.

    If a file ``<data_root>.json`` lies beside the folder, it is the listing::

        {
            "classes": ["birds", "fish"],
            "files": [{"path": "test/birds/owl_0.png", "label": 0, "identity": 7}, ...]
        }

    with paths relative to the folder of the listing; ``identity`` is optional. Otherwise every direct subfolder is a
    class, in sorted order. ``gt_label`` is the index of the class; ``metainfo['classes']`` are the names.

    Args:
        data_root (str): Folder of the pictures.
        pipeline (Sequence[dict | callable]): Transforms. Defaults to ().
        labels (str, optional): Text file with a path below the folder and the number of its class in each line, in
            place of class folders, such as MMPretrain's ``meta/val.txt`` for ImageNet; ``metainfo`` names the classes.
            Defaults to None.
        extensions (Sequence[str]): Endings of picture files, in small letters; not for listings. Defaults to
            :data:`EXTENSIONS`.
        indices (int | Sequence[int], optional): Use the first pictures or the given ones. Defaults to None.
        metainfo (dict, optional): Meta information. ``classes`` that contain the names found number the images by
            name, as in another dataset whose classes they are; as many other names rename the classes in their order.
            Defaults to None.
        lazy_init (bool): Read the listing only when the data are asked for. Defaults to False.

    Raises:
        FileNotFoundError: Neither the folder nor a listing exists.
        ValueError: There is no class folder or no picture, a listing is malformed, or the given classes do not fit.
    """

    METAINFO = dict(dataset_type='labelled_images')

    def __init__(
        self,
        data_root: str,
        pipeline: Sequence = (),
        labels: str | None = None,
        extensions: Sequence[str] = EXTENSIONS,
        indices: int | Sequence[int] | None = None,
        metainfo: dict | None = None,
        lazy_init: bool = False,
    ) -> None:
        self.labels = labels
        self.extensions = extensions
        super().__init__(
            data_root=str(data_root),
            data_prefix={},
            pipeline=pipeline,
            indices=indices,
            metainfo=metainfo,
            test_mode=True,
            lazy_init=lazy_init,
        )

    @property
    def listing(self) -> Path:
        """File that lists the pictures, if it exists."""
        return Path(os.path.normpath(self.data_root) + '.json')

    def load_data_list(self) -> list[dict]:
        """Read the listing or the class folders.

        Returns:
            list[dict]: ``img_path``, ``gt_label`` and, where known, ``identity`` of every picture.
        """
        if self.labels is not None:
            if 'classes' not in self._metainfo:
                raise ValueError(f'{self.labels} gives numbers of classes: name them with metainfo=dict(classes=[...])')
            return self._read_labels(len(self._metainfo['classes']))
        classes, items = self._read_listing() if self.listing.is_file() else self._read_folders()
        if 'classes' in self._metainfo:
            self._renumber(items, classes)
        else:
            self._metainfo['classes'] = tuple(classes)
        return items

    def _renumber(self, items: list[dict], found: Sequence[str]) -> None:
        """Give images the numbers that their classes have among the given names."""
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

    def _read_listing(self):
        try:
            content = json.loads(self.listing.read_text(encoding='utf-8'))
            classes = content['classes']
            items = [self._parse_entry(entry, len(classes)) for entry in content['files']]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'listing {self.listing} is malformed ({type(error).__name__}: {error}). Expected '
                '{"classes": [names], "files": [{"path": str, "label": int, "identity": int (optional)}, ...]}'
            ) from error
        if not items:
            raise ValueError(f'listing {self.listing} names no pictures')
        return classes, items

    def _parse_entry(self, entry, num_classes):
        if not 0 <= entry['label'] < num_classes:
            raise ValueError(f'label {entry["label"]} of {entry["path"]} with {num_classes} classes')
        info = dict(img_path=str(self.listing.parent / entry['path']), gt_label=entry['label'])
        return info | ({'identity': entry['identity']} if 'identity' in entry else {})

    def _read_labels(self, num_classes):
        items = []
        lines = os.fsdecode(Path(self.labels).read_bytes()).rstrip('\n').split('\n')
        for number, line in enumerate(lines, start=1):
            name, _, label = line.strip().rpartition(' ')
            if not name or not label.isdecimal() or int(label) >= num_classes:
                expected = f'a path and a class of 0 ... {num_classes - 1}'
                raise ValueError(f'{self.labels}:{number} is {line!r}: expected {expected}')
            items.append(dict(img_path=str(Path(self.data_root, name)), gt_label=int(label)))
        if not items:
            raise ValueError(f'{self.labels} names no pictures')
        return items

    def _read_folders(self):
        root = Path(self.data_root)
        if not root.is_dir():
            raise FileNotFoundError(f'neither folder {root.absolute()} nor listing {self.listing.absolute()} exists')
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith('.'))
        if not folders:
            raise ValueError(
                f'{root.absolute()} has no class folders: expected {root}/<class>/<picture> or a listing {self.listing}'
            )
        left_out = Counter()
        items = [
            dict(img_path=path, gt_label=label)
            for label, folder in enumerate(folders)
            for path in list_images(folder, self.extensions, left_out)
        ]
        report_left_out(root, left_out)
        return [folder.name for folder in folders], items


def check_classes(datasets: Mapping[str, Dataset]) -> None:
    """Refuse datasets in which one label stands for different classes.

    Args:
        datasets: Datasets by name, whose labels are compared.

    Raises:
        ValueError: The class names of a dataset differ from those of the first one.
    """
    (first, known), *others = ((name, _find_classes(dataset)) for name, dataset in datasets.items())
    for name, classes in others:
        if classes != known:
            raise ValueError(
                f'{first} and {name} have different classes: {_describe_difference(first, known, name, classes)}. '
                'Equal labels would stand for different classes: use the same class folders, or number them alike with '
                'metainfo=dict(classes=[...])'
            )


def _find_classes(dataset: Dataset) -> tuple[str, ...] | None:
    # Names that are found in folders or listings are known after that.
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    return None if classes is None else tuple(map(str, classes))


def _describe_difference(first: str, known: Sequence[str] | None, second: str, found: Sequence[str] | None) -> str:
    for name, classes in ((first, known), (second, found)):
        if classes is None:
            return f'{name} does not name its classes'
    only = {first: [name for name in known if name not in found], second: [name for name in found if name not in known]}
    parts = [f'{_enumerate(names)} only in {name}' for name, names in only.items() if names]
    return ', '.join(parts) or f'{_enumerate(known)} in {first} and {_enumerate(found)} in {second}'


def _enumerate(names: Sequence[str], count: int = 5) -> str:
    return ', '.join(names[:count]) + (f' and {len(names) - count} more' if len(names) > count else '')
