"""A few images with colored rectangles and their COCO or VOC annotations."""

import json

import numpy as np
from PIL import Image

SIZE = 96, 64
"""Width and height."""


def make_annotation(number, image, box, category, **changes):
    """An annotation with a polygon."""
    x, y, width, height = box
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    annotation = dict(id=number, image_id=image, category_id=category, bbox=list(box), area=width * height)
    return dict(annotation, segmentation=[polygon], iscrowd=0) | changes


def draw_boxes(num_images, num_classes, seed=0):
    """Images, uint8, and for each of them boxes (x, y, width, height, class)."""
    rng = np.random.default_rng(seed)
    colors = np.random.default_rng(99).integers(0, 256, (num_classes, 3))
    for index in range(num_images):
        image = rng.integers(100, 140, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
        boxes = []
        for number in range(2):
            label = (2 * index + number) % num_classes
            x, y = 4 + 46 * number + int(rng.integers(0, 8)), int(rng.integers(4, 20))
            width, height = (int(side) for side in rng.integers(20, 34, 2))
            image[y : y + height, x : x + width] = colors[label]
            boxes.append((x, y, width, height, label))
        yield image, boxes


def write_coco(root, classes, ann_file='annotations/instances.json', folder='images', num_images=6):
    """Write a COCO dataset and return its content."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / ann_file).parent.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index, (image, boxes) in enumerate(draw_boxes(num_images, len(classes))):
        Image.fromarray(image).save(root / folder / f'{index}.png')
        images.append(dict(id=index, file_name=f'{index}.png', width=SIZE[0], height=SIZE[1]))
        annotations += [
            make_annotation(2 * index + number, index, box, label + 1) for number, (*box, label) in enumerate(boxes)
        ]
    categories = [dict(id=index + 1, name=name) for index, name in enumerate(classes)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / ann_file).write_text(json.dumps(content))
    return content


def write_voc(root, classes, num_images=4):
    """Write trainval of VOC 2007 and 2012 and the test set of 2007."""
    for year in (2007, 2012):
        base = root / f'VOC{year}'
        for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
            (base / name).mkdir(parents=True)
        for index, (image, boxes) in enumerate(draw_boxes(num_images, len(classes), year)):
            Image.fromarray(image).save(base / f'JPEGImages/{index}.jpg')
            objects = ''.join(_voc_object(classes[label], box) for *box, label in boxes)
            size = f'<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>'
            (base / f'Annotations/{index}.xml').write_text(f'<annotation>{size}{objects}</annotation>')
        for split in ('trainval', 'test'):
            (base / f'ImageSets/Main/{split}.txt').write_text('\n'.join(map(str, range(num_images))))


def _voc_object(name, box):
    x, y, width, height = box
    corners = f'<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax>'
    return f'<object><name>{name}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>'


def shrink(node):
    """Replace sizes in a pipeline so that no image is larger than 96 x 64 pixels, in place."""
    if isinstance(node, list):
        for item in node:
            shrink(item)
    elif isinstance(node, dict):
        for key, value in (('scale', SIZE), ('scales', [SIZE]), ('crop_size', (48, 48))):
            if key in node:
                node[key] = value
        for value in node.values():
            shrink(value)
