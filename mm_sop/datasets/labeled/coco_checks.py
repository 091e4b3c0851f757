"""Checks of COCO annotations before training."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from mm_sop.datasets.image_files import shorten
from mm_sop.datasets.transforms.loading import LoadImage, UnreadableImageError, read_geometry
from mm_sop.utils.failures import UserError

_MAX_SIZES = 5000
_USABLE = ('boxes', 'over the border')
_DAMAGED = (
    'cannot be read, which would abort the evaluation: {}. Repair them, or remove their entries from '
    "'images' and 'annotations'"
)
_RESIZED = (
    'have another size than their annotations say, whose boxes would be misplaced: {}. Correct width and height '
    'and the boxes, or remove the EXIF orientation where the stored image was annotated'
)


class AnnotationError(UserError, ValueError):
    """Annotations cannot be used; the message says which, and what to do."""


def check_coco(dataset: dict) -> Counter:
    """Check the annotations of a ``CocoDataset``, refuse unusable ones and report what the dataset ignores.

    The dataset drops boxes without area, outside of their image or of other categories, and clips boxes that cross the
    border. With ``filter_empty_gt``, training drops images without an annotation of a wanted category, but not those
    whose boxes are dropped for other reasons. The counts are logged.

    An image that cannot be decoded would abort an evaluation, so the images of a dataset in ``test_mode`` are read.
    Width and height are compared with those of the upright image in the header of the file, for at most 5,000 images,
    evenly spaced: boxes drawn on the stored image are misplaced on the one that its EXIF orientation rotates.

    Args:
        dataset: Config of the dataset.

    Returns:
        Number of ``images`` and ``boxes``, of ``empty`` images, and of the boxes ``without area``, ``outside``,
        ``over the border`` and of ``other categories``.

    Raises:
        AnnotationError: The file cannot be read or lacks something, such as masks that the pipeline loads; an image is
            missing, of another size, or cannot be decoded in ``test_mode``; a class of the config has no category, or
            the classes are in another order; or no box remains.
    """
    root = Path(dataset.get('data_root') or '')
    file = root / dataset['ann_file']
    content = _read(file)
    images = content['images']
    categories = _find_categories(file, content['categories'], class_names(dataset))
    for index, image in enumerate(images):
        if missing := _missing(image, 'id', 'file_name', 'width', 'height'):
            raise AnnotationError(f'{file}: images[{index}] has no {missing}: {image}')
    paths = [root / (dataset.get('data_prefix') or {}).get('img', '') / image['file_name'] for image in images]
    _check_existence(file, paths)
    counts = _count(file, content, categories, dataset)
    _report(file, counts)
    if dataset.get('test_mode'):
        print_log(f'{file}: reading {len(paths)} images', 'current')
        _refuse_faults(file, paths, _find_damage, _DAMAGED)
    step = -(-len(paths) // _MAX_SIZES)
    _refuse_faults(file, list(zip(paths, images, strict=True))[::step], _find_other_size, _RESIZED)
    return counts


def class_names(dataset: dict) -> tuple[str, ...]:
    """Classes in the ``metainfo`` of a detection dataset's config, or else of its type."""
    from mmdet.registry import DATASETS

    given = (dataset.get('metainfo') or {}).get('classes')
    with DATASETS.switch_scope_and_registry('mmdet') as registry:
        return tuple(given or registry.get(dataset['type']).METAINFO['classes'])


def check_num_classes(model: dict, classes: Sequence[str]) -> None:
    """Refuse a detector, given by its config, whose heads have another number of classes than the data.

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
                    f'({shorten(classes, 8)}): set num_classes={len(classes)}'
                )


def _read(file: Path) -> dict:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise AnnotationError(f'no annotations {file}: set data_root and ann_file, or create the dataset') from error
    except ValueError as error:
        raise AnnotationError(f'{file} is not JSON: {error}') from error
    if missing := _missing(content, 'images', 'annotations', 'categories'):
        raise AnnotationError(f'{file} is not in the format of COCO detection: {missing} missing')
    return content


def _missing(content: dict, *keys: str) -> str:
    return ', '.join(key for key in keys if key not in content)


def _find_categories(file: Path, categories: list[dict], classes: Sequence[str]) -> set[int]:
    """Identifiers of the wanted categories, which MMDetection numbers in the order of the file."""
    found = [category['name'] for category in categories if category['name'] in classes]
    missing = [name for name in classes if name not in found]
    if missing:
        others = [category['name'] for category in categories if category['name'] not in classes]
        raise AnnotationError(
            f'{file} has no category {shorten(missing, 8)}; it has {shorten(others, 8) or "no others"} that the config '
            "does not name. Set metainfo=dict(classes=(...)) to the file's names, and num_classes of the heads"
        )
    if found != list(classes):
        raise AnnotationError(
            f'{file} has the categories in another order than the config: set metainfo=dict(classes={tuple(found)})'
        )
    return {category['id'] for category in categories if category['name'] in classes}


def _check_existence(file: Path, paths: list[Path]) -> None:
    """Refuse missing files, and FIFOs, which would block a worker forever."""
    present: dict[Path, set[str]] = {}
    for folder in {path.parent for path in paths}:
        entries = list(os.scandir(folder)) if folder.is_dir() else []
        # `DirEntry.is_file` raises an error for a link to itself.
        present[folder] = {each.name for each in entries if (Path(each) if each.is_symlink() else each).is_file()}
    missing = [str(path) for path in paths if path.name not in present[path.parent]]
    if missing:
        raise AnnotationError(
            f'{len(missing)} of {len(paths)} images of {file} do not exist, or are not regular files: '
            f'{shorten(missing, 8)}. '
            "Check data_root and data_prefix=dict(img=...), or remove their entries from 'images'"
        )


def _refuse_faults(file: Path, images: Sequence, find_fault: Callable[[Any], str | None], message: str) -> None:
    """Examine images in parallel."""
    with ThreadPoolExecutor() as pool:
        faults = [fault for fault in pool.map(find_fault, images) if fault]
    if faults:
        raise AnnotationError(f'{len(faults)} of {len(images)} images of {file} {message.format(shorten(faults, 8))}')


def _find_damage(path: Path) -> str | None:
    try:
        LoadImage()(dict(img_path=str(path)))
    except UnreadableImageError as error:
        return str(error)
    return None


def _find_other_size(annotated: tuple[Path, dict]) -> str | None:
    path, image = annotated
    try:
        size, orientation = read_geometry(path)
    except UnreadableImageError:  # reported elsewhere
        return None
    if size == (image['width'], image['height']):
        return None
    rotated = f' (EXIF orientation {orientation})' if orientation > 1 else ''
    return f'{path} is {size[0]} x {size[1]}{rotated}, annotated {image["width"]} x {image["height"]}'


def _count(file: Path, content: dict, categories: set[int], dataset: dict) -> Counter:
    images = {image['id']: image for image in content['images']}
    needs_mask: tuple[str, ...] = ()
    if any(step.get('with_mask') for step in dataset.get('pipeline', ())):
        # An evaluation also reads the masks of those that training drops.
        needs_mask = (*_USABLE, 'without area', 'outside') if dataset.get('test_mode') else _USABLE
    counts, filled = Counter(images=len(images)), set()
    for annotation in content['annotations']:
        fault = _find_fault(annotation, images)
        if fault:
            raise AnnotationError(f'{file}: annotation {annotation.get("id")} {fault}')
        kind = _classify(annotation, images[annotation['image_id']], categories)
        counts[kind] += 1
        if kind in _USABLE:
            filled.add(annotation['image_id'])
        if kind in needs_mask and not annotation.get('segmentation'):
            raise AnnotationError(
                f'{file}: annotation {annotation.get("id")} has no segmentation, which masks need: add it, or train a '
                'detector of boxes alone, such as configs/detection/faster-rcnn_*'
            )
    counts['boxes'] += counts['over the border']
    counts['empty'] = len(images) - len(filled)
    return counts


def _find_fault(annotation: dict, images: dict[int, dict]) -> str | None:
    if missing := _missing(annotation, 'image_id', 'category_id', 'bbox', 'area'):
        return f'has no {missing}'
    if annotation['image_id'] not in images:
        return f"belongs to image {annotation['image_id']}, which is not among the file's images"
    box = annotation['bbox']
    if len(box) != 4 or not all(math.isfinite(value) for value in box):
        return f'has the box {box}: expected x, y, width, height'
    return None


def _classify(annotation: dict, image: dict, categories: set[int]) -> str:
    """Kind of an annotation, by the rules of MMDetection's CocoDataset."""
    x, y, width, height = annotation['bbox']
    if annotation['category_id'] not in categories:
        return 'other categories'
    if annotation['area'] <= 0 or width < 1 or height < 1:
        return 'without area'
    if min(x + width, image['width']) <= max(x, 0) or min(y + height, image['height']) <= max(y, 0):
        return 'outside'
    inside = x >= 0 and y >= 0 and x + width <= image['width'] and y + height <= image['height']
    return 'boxes' if inside else 'over the border'


def _report(file: Path, counts: Counter) -> None:
    if not counts['boxes']:
        raise AnnotationError(f'{file} has no usable box in {counts["images"]} images: {dict(counts)}')
    print_log(f'{file}: {counts["images"]} images, {counts["boxes"]} boxes', 'current')
    fates = dict.fromkeys(('without area', 'outside', 'other categories'), 'are dropped')
    fates['over the border'] = 'are clipped'
    notes = [f'{counts[kind]} boxes {kind} {fate}' for kind, fate in fates.items() if counts[kind]]
    notes += [f'{counts["empty"]} images have no box'] if counts['empty'] else []
    if notes:
        print_log(f'{file}: {"; ".join(notes)}', 'current')
