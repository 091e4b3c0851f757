"""Faults of COCO annotations."""

import json
import math
import os

import pytest
from mmdet.registry import DATASETS
from PIL import Image
from testing.detection_data import SIZE, make_annotation, write_coco

from mm_sop.datasets.labeled.coco_checks import AnnotationError, check_coco, check_num_classes, class_names

CLASSES = ('boats', 'cups', 'keys')


@pytest.fixture
def data(tmp_path):
    """A sound dataset: its content, a function that writes it, and its config."""
    content = write_coco(tmp_path, CLASSES)

    def write():
        (tmp_path / 'annotations/instances.json').write_text(json.dumps(content))

    config = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='annotations/instances.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES),
    )
    return content, write, config


def test_what_becomes_of_odd_boxes(data):
    content, write, config = data
    width, height = SIZE
    content['categories'].append(dict(id=9, name='other'))
    odd = [
        ((5, 5, 0, 10), 1, {}),
        ((5, 5, 10, 0.5), 1, {}),
        ((5, 5, 10, 10), 1, dict(area=0)),
        ((width + 5, 5, 10, 10), 1, {}),
        ((-20, 5, 20, 10), 2, {}),
        ((-5, 5, 20, 10), 2, {}),
        ((width - 5, height - 5, 20, 10), 2, {}),
        ((5, 5, 10, 10), 9, {}),
    ]
    content['annotations'] = [
        make_annotation(100 + index, 0, box, category, **changes) for index, (box, category, changes) in enumerate(odd)
    ] + [annotation for annotation in content['annotations'] if annotation['image_id'] < 4]
    write()
    counts = check_coco(config)
    assert counts == {
        'images': 6,
        'boxes': 8 + 2,
        'empty': 2,
        'without area': 3,
        'outside': 2,
        'over the border': 2,
        'other categories': 1,
    }
    dataset = DATASETS.build(dict(config, type='mmdet.CocoDataset', serialize_data=False))
    instances = [info['instances'] for info in dataset.data_list]
    assert sum(map(len, instances)) == counts['boxes']
    assert sum(not found for found in instances) == counts['empty']


def test_classes_must_be_those_of_the_file_in_its_order(data):
    content, write, config = data
    assert check_coco(dict(config, metainfo=dict(classes=('boats', 'keys'))))['other categories'] == 4
    with pytest.raises(AnnotationError, match='no category ships; it has boats that the config does not name'):
        check_coco(dict(config, metainfo=dict(classes=('ships', 'cups', 'keys'))))
    with pytest.raises(AnnotationError, match=r"another order .*classes=\('boats', 'cups', 'keys'\)"):
        check_coco(dict(config, metainfo=dict(classes=('cups', 'boats', 'keys'))))
    with pytest.raises(AnnotationError, match='no category person, bicycle.* and 72 more'):
        check_coco({key: value for key, value in config.items() if key != 'metainfo'})


def test_missing_images_are_counted_and_named(data, tmp_path):
    _, _, config = data
    (tmp_path / 'images/3.png').unlink()
    (tmp_path / 'images/5.png').unlink()
    with pytest.raises(AnnotationError, match=r'2 of 6 images .*images/3.png, .*images/5.png\. Check data_root'):
        check_coco(config)
    with pytest.raises(AnnotationError, match='6 of 6 images'):
        check_coco(dict(config, data_prefix=dict(img='elsewhere')))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(bbox=[1, 2, 3]), 'annotation 0 has the box'),
        (dict(bbox=[1, 2, 3, math.nan]), 'annotation 0 has the box'),
        (dict(image_id=77), 'belongs to image 77'),
    ],
)
def test_broken_annotation(data, change, message):
    content, write, config = data
    content['annotations'][0].update(change)
    write()
    with pytest.raises(AnnotationError, match=message):
        check_coco(config)


def test_broken_files(data, tmp_path):
    content, write, config = data
    del content['annotations'][2]['area']
    write()
    with pytest.raises(AnnotationError, match='annotation 2 has no area'):
        check_coco(config)
    content['annotations'] = []
    write()
    with pytest.raises(AnnotationError, match='no usable box in 6 images'):
        check_coco(config)
    del content['categories']
    write()
    with pytest.raises(AnnotationError, match='categories missing'):
        check_coco(config)
    (tmp_path / 'annotations/instances.json').write_text('{"images": [')
    with pytest.raises(AnnotationError, match='is not JSON'):
        check_coco(config)
    with pytest.raises(AnnotationError, match='no annotations .*absent.json'):
        check_coco(dict(config, ann_file='absent.json'))


@pytest.mark.parametrize('key', ['id', 'file_name', 'width', 'height'])
def test_images_need_name_and_size(data, key):
    content, write, config = data
    del content['images'][4][key]
    write()
    with pytest.raises(AnnotationError, match=rf'images\[4\] has no {key}'):
        check_coco(config)


def test_masks_are_needed_where_they_are_loaded(data):
    content, write, config = data
    with_masks = dict(config, pipeline=[dict(type='LoadAnnotations', with_bbox=True, with_mask=True)])
    content['annotations'][2]['segmentation'] = []
    write()
    check_coco(config)
    with pytest.raises(AnnotationError, match='annotation 2 has no segmentation'):
        check_coco(with_masks)
    # A box without area is left out of training, but COCO's evaluation reads its mask.
    content['annotations'][2].update(bbox=[5, 5, 0, 9], area=0)
    write()
    assert check_coco(with_masks)['without area'] == 1
    with pytest.raises(AnnotationError, match='annotation 2 has no segmentation'):
        check_coco(dict(with_masks, test_mode=True))


@pytest.mark.parametrize('content', [b'', b'\x89PNG\r\n\x1a\n'])
def test_images_of_an_evaluation_must_be_readable(data, tmp_path, content):
    _, _, config = data
    (tmp_path / 'images/1.png').write_bytes(content)
    check_coco(config)
    with pytest.raises(AnnotationError, match=r'1 of 6 images .* cannot be read.*images/1.png: '):
        check_coco(dict(config, test_mode=True))


@pytest.mark.parametrize('make', [os.mkfifo, lambda path: path.symlink_to(path)], ids=['fifo', 'circle'])
def test_images_must_be_regular_files(data, tmp_path, make):
    _, _, config = data
    path = tmp_path / 'images/1.png'
    path.rename(tmp_path / 'elsewhere.png')
    path.symlink_to(tmp_path / 'elsewhere.png')
    check_coco(config)
    path.unlink()
    make(path)
    with pytest.raises(AnnotationError, match=r'1 of 6 images .* not regular files: .*images/1.png'):
        check_coco(config)


@pytest.mark.parametrize('test_mode', [False, True])
def test_sizes_must_be_those_of_the_upright_images(data, tmp_path, test_mode):
    content, write, config = data
    config = dict(config, test_mode=test_mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / 'images/1.png'
    Image.open(path).save(path, exif=exif)
    with pytest.raises(AnnotationError, match=r'1.png is 64 x 96 \(EXIF orientation 6\), annotated 96 x 64'):
        check_coco(config)
    content['images'][1].update(width=64, height=96)
    write()
    check_coco(config)
    content['images'][2].update(width=95)
    write()
    with pytest.raises(AnnotationError, match=r'1 of 6 images .*2.png is 96 x 64, annotated 95 x 64'):
        check_coco(config)


def test_number_of_classes_of_the_heads():
    head = dict(num_classes=3)
    check_num_classes(dict(roi_head=dict(bbox_head=[head, head], mask_head=head)), CLASSES)
    with pytest.raises(AnnotationError, match='mask_head.num_classes=80, but the data have 3 classes'):
        check_num_classes(dict(roi_head=dict(bbox_head=head, mask_head=dict(num_classes=80))), CLASSES)
    assert len(class_names(dict(type='CocoDataset'))) == 80
