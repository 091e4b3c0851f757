"""Checks of COCO annotations before anything is trained on them."""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmdet.registry import DATASETS
from mmengine.logging import print_log

_MAX_LISTED = 8


class AnnotationError(ValueError):
    """Annotations cannot be used; the message says which, and what to do."""


def check_coco(dataset: dict) -> Counter:
    """Read the annotations of a ``CocoDataset`` and refuse those that would train something else than was meant.

    Boxes without area, outside of their picture or of a category that is not asked for are left out by the data set;
    boxes that reach over the border are cut; pictures without boxes are left out of training where ``filter_empty_gt``
    is set. All are counted and logged.

    Args:
        dataset: Config of the data set.

    Returns:
        Number of ``pictures`` and ``boxes``, of ``empty`` pictures, and of the boxes ``without area``, ``outside``,
        ``over the border`` and of ``other categories``.

    Raises:
        AnnotationError: The file cannot be read or lacks something; a picture is missing on the disk; a class of the
            config has no category, or classes are in another order; or no box is left.
    """
    root = Path(dataset.get('data_root') or '')
    file = root / dataset['ann_file']
    content = _read(file)
    labels = _check_categories(file, content['categories'], class_names(dataset))
    pictures = {picture['id']: picture for picture in content['images']}
    _check_files(file, root / (dataset.get('data_prefix') or {}).get('img', ''), content['images'])
    counts = _count(file, content['annotations'], pictures, labels)
    _report(file, counts)
    return counts


def class_names(dataset: dict) -> tuple[str, ...]:
    """Classes of a detection data set.

    Args:
        dataset: Its config.

    Returns:
        Those of its ``metainfo``, or else of its type.
    """
    given = (dataset.get('metainfo') or {}).get('classes')
    with DATASETS.switch_scope_and_registry('mmdet') as registry:
        return tuple(given or registry.get(dataset['type']).METAINFO['classes'])


def check_num_classes(model: dict, classes: Sequence[str]) -> None:
    """Refuse a detector whose heads tell another number of classes apart than the data have.

    Args:
        model: Config of the detector.
        classes: Names of the classes.

    Raises:
        AnnotationError: A head has another number.
    """
    roi_head = model.get('roi_head') or {}
    for owner, name in ((model, 'bbox_head'), (roi_head, 'bbox_head'), (roi_head, 'mask_head')):
        heads = owner.get(name) or []
        for head in heads if isinstance(heads, list) else [heads]:
            if head.get('num_classes', len(classes)) != len(classes):
                raise AnnotationError(
                    f'{name}.num_classes={head["num_classes"]}, but the data have {len(classes)} classes '
                    f'({_shorten(classes)}): set num_classes={len(classes)}'
                )


def _read(file: Path) -> dict:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise AnnotationError(f'no annotations {file}: set data_root and ann_file, or make the data set') from error
    except ValueError as error:
        raise AnnotationError(f'{file} is no JSON: {error}') from error
    missing = [key for key in ('images', 'annotations', 'categories') if key not in content]
    if missing:
        raise AnnotationError(f'{file} is not in the format of COCO detection: {", ".join(missing)} missing')
    return content


def _check_categories(file: Path, categories: list[dict], classes: Sequence[str]) -> set[int]:
    """Identifiers of the wanted categories; MMDetection numbers them in the order of the file."""
    found = [category['name'] for category in categories if category['name'] in classes]
    missing = [name for name in classes if name not in found]
    if missing:
        others = [category['name'] for category in categories if category['name'] not in classes]
        raise AnnotationError(
            f'{file} has no category {_shorten(missing)}; it has {_shorten(others) or "no others"} that the config '
            "does not name. Set metainfo=dict(classes=(...)) to the file's names, and num_classes of the heads"
        )
    if found != list(classes):
        raise AnnotationError(
            f'{file} has the categories in another order than the config: set metainfo=dict(classes={tuple(found)})'
        )
    return {category['id'] for category in categories if category['name'] in classes}


def _check_files(file: Path, folder: Path, pictures: list[dict]) -> None:
    names = [folder / picture['file_name'] for picture in pictures]
    present = {
        parent: set(os.listdir(parent)) if parent.is_dir() else set() for parent in {name.parent for name in names}
    }
    missing = [str(name) for name in names if name.name not in present[name.parent]]
    if missing:
        raise AnnotationError(
            f'{len(missing)} of {len(names)} pictures of {file} do not exist: {_shorten(missing)}. '
            "Check data_root and data_prefix=dict(img=...), or remove their entries from 'images'"
        )


def _count(file: Path, annotations: list[dict], pictures: dict[int, dict], labels: set[int]) -> Counter:
    counts = Counter(pictures=len(pictures))
    filled = set()
    for annotation in annotations:
        fault = _find_fault(annotation, pictures)
        if fault:
            raise AnnotationError(f'{file}: annotation {annotation.get("id")} {fault}')
        kind = _classify(annotation, pictures[annotation['image_id']], labels)
        counts[kind] += 1
        if kind in ('boxes', 'over the border'):
            filled.add(annotation['image_id'])
    counts['boxes'] += counts['over the border']
    counts['empty'] = len(pictures) - len(filled)
    return counts


def _find_fault(annotation: dict, pictures: dict[int, dict]) -> str | None:
    """What makes an annotation unreadable, or None."""
    missing = [key for key in ('image_id', 'category_id', 'bbox', 'area') if key not in annotation]
    if missing:
        return f'has no {", ".join(missing)}'
    if annotation['image_id'] not in pictures:
        return f"belongs to picture {annotation['image_id']}, which is not among the file's images"
    box = annotation['bbox']
    if len(box) != 4 or not all(math.isfinite(value) for value in box):
        return f'has the box {box}: expected x, y, width, height'
    return None


def _classify(annotation: dict, picture: dict, labels: set[int]) -> str:
    """What becomes of an annotation, by the rules of MMDetection's CocoDataset."""
    x, y, width, height = annotation['bbox']
    if annotation['category_id'] not in labels:
        return 'other categories'
    if annotation['area'] <= 0 or width < 1 or height < 1:
        return 'without area'
    if min(x + width, picture['width']) <= max(x, 0) or min(y + height, picture['height']) <= max(y, 0):
        return 'outside'
    inside = x >= 0 and y >= 0 and x + width <= picture['width'] and y + height <= picture['height']
    return 'boxes' if inside else 'over the border'


def _report(file: Path, counts: Counter) -> None:
    if not counts['boxes']:
        raise AnnotationError(f'{file} has no usable box in {counts["pictures"]} pictures: {dict(counts)}')
    notes = [
        f'{counts[kind]} boxes {kind} {fate}'
        for kind, fate in (
            ('without area', 'are left out'),
            ('outside', 'are left out'),
            ('other categories', 'are left out'),
            ('over the border', 'are cut'),
        )
        if counts[kind]
    ]
    notes += [f'{counts["empty"]} pictures have no box'] if counts['empty'] else []
    print_log(f'{file}: {counts["pictures"]} pictures, {counts["boxes"]} boxes', 'current')
    if notes:
        print_log(f'{file}: {"; ".join(notes)}', 'current')


def _shorten(names: Sequence[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ', '.join(names[:_MAX_LISTED]) + (f' and {more} more' if more > 0 else '')
