import os

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmdet.datasets import ADE20KSegDataset, BaseSegDataset
from mmdet.datasets.transforms import LoadAnnotations
from mmpretrain.registry import DATASETS
from PIL import Image, ImageOps
from testing.segmentation_images import write_segmentation_set

from mm_sop.datasets.transforms import UnreadableImageError

PREFIX = dict(img_path='images/training', seg_map_path='annotations/training')
METAINFO = dict(classes=('ground', 'box', 'crate'), palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0]])


def build(root, type='SegmentationImages', num_classes=3, ann_file='', **options):
    pipeline = [dict(type='LoadImage'), dict(type='LoadSegmentationMap', num_classes=num_classes, **options)]
    metainfo = METAINFO if type == 'SegmentationImages' else None
    settings = dict(data_root=str(root), data_prefix=PREFIX, ann_file=ann_file, metainfo=metainfo)
    return DATASETS.build(dict(type=type, **settings, pipeline=pipeline))


@pytest.fixture
def root(tmp_path):
    write_segmentation_set(tmp_path)
    return tmp_path


def save_labels(root, labels, name='0.png'):
    Image.fromarray(np.asarray(labels, np.uint8)).save(root / 'annotations/training' / name)


@pytest.mark.parametrize('reduce_zero_label', [False, True])
@pytest.mark.parametrize('ann_file', ['', 'list.txt'])
def test_samples_are_those_of_mmdetection(root, ann_file, reduce_zero_label):
    (root / 'list.txt').write_text('2\n0\n')
    settings = dict(data_root=str(root), data_prefix=PREFIX, ann_file=ann_file, metainfo=METAINFO)
    ours = build(root, num_classes=3, reduce_zero_label=reduce_zero_label, ann_file=ann_file)
    load = LoadAnnotations(
        with_bbox=False,
        with_label=False,
        with_seg=True,
        reduce_zero_label=reduce_zero_label,
        imdecode_backend='pillow',
    )
    theirs = BaseSegDataset(**settings, pipeline=[load])
    assert len(ours) == len(theirs) == (2 if ann_file else 4) and ours.metainfo == theirs.metainfo
    for index in range(len(ours)):
        assert ours.get_data_info(index) == theirs.get_data_info(index)
        sample, expected = ours[index], theirs[index]
        assert np.array_equal(sample['gt_seg_map'], expected['gt_seg_map'])
        assert sample['gt_seg_map'].dtype == expected['gt_seg_map'].dtype
        assert sample['ignore_index'] == expected['ignore_index'] == 255


def test_chosen_classes_renumber_the_labels(root):
    settings = dict(data_root=str(root), data_prefix=PREFIX, metainfo=dict(classes=('sky', 'wall')), use_label_map=True)
    load = [dict(type='LoadImage'), dict(type='LoadSegmentationMap', num_classes=2)]
    dataset = DATASETS.build(dict(type='ADE20KImages', **settings, pipeline=load))
    palette = ADE20KSegDataset.METAINFO['palette']
    assert dataset.metainfo['palette'] == [palette[2], palette[0]]
    # Wall, building and sky are 0, 1 and 2.
    labels = np.asarray(Image.open(root / 'annotations/training/0.png'))
    assert np.array_equal(dataset[0]['gt_seg_map'], np.array([1, 0, 0])[labels])
    with pytest.raises(ValueError, match=r"classes \['unicorn'\] are not among the 150"):
        DATASETS.build(dict(type='ADE20KImages', **dict(settings, metainfo=dict(classes=('sky', 'unicorn')))))


def test_missing_palettes_are_drawn_and_short_ones_refused(root):
    settings = dict(type='SegmentationImages', data_root=str(root), data_prefix=PREFIX)
    for classes in (None, ('a', 'b', 'c')):
        metainfo = dict(classes=classes) if classes else None
        expected = BaseSegDataset(data_root=str(root), data_prefix=PREFIX, metainfo=metainfo, lazy_init=True)
        assert DATASETS.build(dict(settings, metainfo=metainfo)).metainfo == expected.metainfo
    with pytest.raises(ValueError, match='1 colors for 2 classes'):
        DATASETS.build(dict(settings, metainfo=dict(classes=('a', 'b'), palette=[[0, 0, 0]])))
    with pytest.raises(ValueError, match='name the classes'):
        DATASETS.build(dict(settings, test_mode=True))


def test_images_come_with_their_maps(root):
    dataset = build(root)
    assert len(dataset) == 4 and dataset.metainfo['classes'] == METAINFO['classes']
    sample = dataset[2]
    expected = np.asarray(Image.open(root / 'annotations/training/2.png'))
    assert np.array_equal(sample['gt_seg_map'], expected) and set(np.unique(expected)) == {0, 1, 2}


def test_label_zero_of_ade20k_is_no_class(root):
    dataset = build(root, 'ADE20KImages', num_classes=150, reduce_zero_label=True)
    assert len(dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == 150
    labels = np.asarray(Image.open(root / 'annotations/training/0.png')).astype(int)
    assert np.array_equal(dataset[0]['gt_seg_map'], np.where(labels == 0, 255, labels - 1))


def test_a_palette_is_read_as_labels(root):
    labels = np.arange(48 * 32).reshape(32, 48) % 3
    image = Image.fromarray(labels.astype(np.uint8), 'P')
    image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
    image.save(root / 'annotations/training/0.png')
    assert np.array_equal(build(root)[0]['gt_seg_map'], labels)


def test_a_missing_map_is_found_at_once(root):
    (root / 'annotations/training/1.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 4 images have no label map: .*1\.png'):
        build(root)


def test_missing_folders_are_named(root, tmp_path_factory):
    for image in (root / 'images/training').iterdir():
        image.unlink()
    with pytest.raises(FileNotFoundError, match=r'no images \*\.jpg below .*images/training'):
        build(root)
    with pytest.raises(FileNotFoundError, match=r'images/training is not a folder: .*data_prefix\.img_path'):
        build(tmp_path_factory.mktemp('empty'))


def test_labels_beyond_the_classes_are_named(root):
    labels = np.zeros((32, 48))
    labels[3, 4] = 7
    save_labels(root, labels)
    with pytest.raises(
        ValueError, match=r'0\.png has the labels \[7\], expected 0 \.\.\. 2 or 255: check num_classes=3'
    ):
        build(root)[0]


@pytest.mark.parametrize('shape', [(16, 48), (32, 48, 3)])
def test_maps_of_another_shape_are_named(root, shape):
    save_labels(root, np.zeros(shape))
    with pytest.raises(ValueError, match=r'0\.png has the shape \(.*one label for each pixel'):
        build(root)[0]


def test_damaged_maps_are_unreadable_images(root):
    path = root / 'annotations/training/0.png'
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UnreadableImageError, match=r'0\.png'):
        build(root)[0]


def test_maps_follow_their_images(root):
    dataset = build(root)
    geometry = Compose([
        dict(
            type='RandomResize', scale=(96, 64), ratio_range=(0.5, 2.0), keep_ratio=True, resize_type='mmdet.Resize'
        ),
        dict(type='mmdet.RandomCrop', crop_size=(24, 24)),
        dict(type='mmdet.RandomFlip', prob=0.5),
    ])  # fmt: skip
    for index in range(4):
        np.random.seed(index)
        sample = geometry(dataset[index])
        assert sample['gt_seg_map'].shape == sample['img'].shape[:2]
        crate = sample['gt_seg_map'] == 2
        # The last rectangle lies on top and is green, before darker things.
        if crate.any() and not crate.all():
            assert sample['img'][crate, 1].mean() > sample['img'][~crate, 1].mean() + 50


def save_turned(root, orientation, map_orientation=1, size=(48, 32), ending='png'):
    """An image with an EXIF orientation and random labels as they are stored; both upright."""
    labels = Image.fromarray(np.random.default_rng(0).integers(0, 3, size[::-1], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    labels.resize(size).save(root / 'images/training/0.jpg', exif=exif)
    exif[0x0112] = map_orientation
    (root / 'annotations/training/0.png').unlink()
    labels.save(root / f'annotations/training/0.{ending}', **(dict(exif=exif) if map_orientation > 1 else {}))
    labels.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(labels))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_maps_are_turned_with_their_images(root, orientation):
    upright = save_turned(root, orientation, orientation)
    assert np.array_equal(build(root)[0]['gt_seg_map'], upright)
    # Without an orientation of its own the size tells, where it can.
    save_turned(root, orientation)
    if orientation in (2, 3, 4):
        with pytest.raises(ValueError, match=r'0\.jpg has the EXIF orientation .* Set turn_with_image'):
            build(root)[0]
    else:
        assert np.array_equal(build(root)[0]['gt_seg_map'], upright)
    assert np.array_equal(build(root, turn_with_image=True)[0]['gt_seg_map'], upright)
    save_labels(root, upright)
    assert np.array_equal(build(root, turn_with_image=False)[0]['gt_seg_map'], upright)
    if orientation >= 5:
        assert np.array_equal(build(root)[0]['gt_seg_map'], upright)


def test_square_maps_do_not_say_whether_they_are_upright(root):
    save_turned(root, 6, size=(32, 32))
    with pytest.raises(ValueError, match='EXIF orientation 6'):
        build(root)[0]


def test_tiff_maps_are_turned_once(root):
    dataset = build(root)
    upright = save_turned(root, 3, 3, ending='tif')
    info = dict(dataset.get_data_info(0), seg_map_path=str(root / 'annotations/training/0.tif'))
    assert np.array_equal(dataset.pipeline(info)['gt_seg_map'], upright)


def test_fifos_in_place_of_maps_are_unreadable(root):
    dataset = build(root)
    path = root / 'annotations/training/0.png'
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UnreadableImageError, match='Not a regular file'):
        dataset[0]
