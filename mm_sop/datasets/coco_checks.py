"""Checks of COCO annotations before anything is trained on them."""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmdet.registry import DATASETS
from mmengine.logging import print_log

from mm_sop.datasets.transforms.loading import LoadPicture, UnreadableImageError, read_geometry

_MAX_LISTED = 8
_MAX_SIZES = 5000
_USABLE = ('boxes', 'over the border')


class AnnotationError(ValueError):
    """Annotations cannot be used; the message says which, and what to do."""


def check_coco(dataset: dict) -> Counter:
    """Read the annotations of a ``CocoDataset`` and refuse those that would train something else than was meant.

    Boxes without area, outside of their picture or of a category that is not asked for are left out by the data set;
    boxes that reach over the border are cut; pictures without an annotation of a wanted category are left out of
    training where ``filter_empty_gt`` is set, those with boxes that are left out stay. All are counted, on the console.

    A picture that cannot be decoded would end an evaluation, so those of a data set in ``test_mode`` are read. Width
    and height are compared with those of the upright picture in the header of the file, of at most 5,000 pictures,
    evenly spaced: boxes drawn on a picture as it is stored are misplaced on the one that its EXIF orientation turns.

    Args:
        dataset: Config of the data set.

    Returns:
        Number of ``pictures`` and ``boxes``, of ``empty`` pictures, and of the boxes ``without area``, ``outside``,
        ``over the border`` and of ``other categories``.

    Raises:
        AnnotationError: The file cannot be read or lacks something, such as masks that the pipeline loads; a picture is
            missing on the disk, of another size, or cannot be decoded in ``test_mode``; a class of the config has no
            category, or classes are in another order; or no box is left.
    """
    root = Path(dataset.get('data_root') or '')
    file = root / dataset['ann_file']
    content = _read(file)
    labels = _check_categories(file, content['categories'], class_names(dataset))
    _check_keys(file, content['images'])
    paths = [root / (dataset.get('data_prefix') or {}).get('img', '') / each['file_name'] for each in content['images']]
    _check_files(file, paths)
    counts = _count(file, content, labels, dataset)
    _report(file, counts)
    if dataset.get('test_mode'):
        _check_pictures(file, paths)
    _check_sizes(file, content['images'], paths)
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


def _check_keys(file: Path, pictures: list[dict]) -> None:
    for index, picture in enumerate(pictures):
        missing = [key for key in ('id', 'file_name', 'width', 'height') if key not in picture]
        if missing:
            raise AnnotationError(f'{file}: images[{index}] has no {", ".join(missing)}: {picture}')


def _check_files(file: Path, paths: list[Path]) -> None:
    present = {parent: _list_files(parent) if parent.is_dir() else set() for parent in {path.parent for path in paths}}
    missing = [str(path) for path in paths if path.name not in present[path.parent]]
    if missing:
        raise AnnotationError(
            f'{len(missing)} of {len(paths)} pictures of {file} do not exist, or are no regular files: '
            f'{_shorten(missing)}. '
            "Check data_root and data_prefix=dict(img=...), or remove their entries from 'images'"
        )


def _list_files(folder: Path) -> set[str]:
    """Names of the regular files: a FIFO in place of a picture would stop a worker for ever."""
    with os.scandir(folder) as entries:
        # Links to themselves raise an error in `is_file`.
        return {entry.name for entry in entries if (os.path.isfile(entry) if entry.is_symlink() else entry.is_file())}


def _check_sizes(file: Path, pictures: list[dict], paths: list[Path]) -> None:
    step = -(-len(paths) // _MAX_SIZES)
    chosen = list(zip(pictures, paths, strict=True))[::step]
    with ThreadPoolExecutor() as pool:
        faults = [fault for fault in pool.map(_find_size_fault, *zip(*chosen, strict=True)) if fault]
    if faults:
        raise AnnotationError(
            f'{len(faults)} of {len(chosen)} pictures of {file} have another size than their annotations say, whose '
            f'boxes would be misplaced: {_shorten(faults)}. Correct width and height and the boxes, or remove the EXIF '
            'orientation where the stored picture was annotated'
        )


def _find_size_fault(picture: dict, path: Path) -> str | None:
    """Path of a picture and how its size differs, or None; those that cannot be read are reported elsewhere."""
    try:
        size, orientation = read_geometry(path)
    except UnreadableImageError:
        return None
    if size == (picture['width'], picture['height']):
        return None
    turned = f' (EXIF orientation {orientation})' if orientation > 1 else ''
    return f'{path} is {size[0]} x {size[1]}{turned}, annotated {picture["width"]} x {picture["height"]}'


def _check_pictures(file: Path, paths: list[Path]) -> None:
    print_log(f'{file}: reading {len(paths)} pictures', 'current')
    with ThreadPoolExecutor() as pool:
        faults = [fault for fault in pool.map(_read_fault, paths) if fault]
    if faults:
        raise AnnotationError(
            f'{len(faults)} of {len(paths)} pictures of {file} cannot be read, which would end the evaluation: '
            f"{_shorten(faults)}. Repair them, or remove their entries from 'images' and 'annotations'"
        )


def _read_fault(path: Path) -> str | None:
    """Path of a picture and what is wrong with it, or None."""
    try:
        LoadPicture()(dict(img_path=str(path)))
    except UnreadableImageError as error:
        return str(error)
    return None


def _count(file: Path, content: dict, labels: set[int], dataset: dict) -> Counter:
    pictures = {picture['id']: picture for picture in content['images']}
    needs_mask = _kinds_with_mask(dataset)
    counts = Counter(pictures=len(pictures))
    filled = set()
    for annotation in content['annotations']:
        fault = _find_fault(annotation, pictures)
        if fault:
            raise AnnotationError(f'{file}: annotation {annotation.get("id")} {fault}')
        kind = _classify(annotation, pictures[annotation['image_id']], labels)
        counts[kind] += 1
        if kind in _USABLE:
            filled.add(annotation['image_id'])
        if not annotation.get('segmentation') and kind in needs_mask:
            raise AnnotationError(
                f'{file}: annotation {annotation.get("id")} has no segmentation, which masks need: add it, or train a '
                'detector of boxes alone, such as configs/detection/faster-rcnn_*'
            )
    counts['boxes'] += counts['over the border']
    counts['empty'] = len(pictures) - len(filled)
    return counts


def _kinds_with_mask(dataset: dict) -> tuple[str, ...]:
    """Annotations, by what becomes of them, whose mask is read: in evaluation also those that training leaves out."""
    if not any(step.get('with_mask') for step in dataset.get('pipeline', ())):
        return ()
    return (*_USABLE, 'without area', 'outside') if dataset.get('test_mode') else _USABLE


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
