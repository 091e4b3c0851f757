"""Labeled data in their published layouts, with tiny files."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from testing.evaluation_encoders import write_classes
from testing.labeled_images import TinyImages

from mm_sop.datasets import CIFAR10Images
from mm_sop.datasets.transforms.evaluation import EvaluationTransform
from mm_sop.evaluation.context import MissingDataError
from mm_sop.evaluation.labeled_data import (
    draw_per_class,
    find_classification,
    find_subset_lists,
    read_subset_list,
)

TRANSFORM = EvaluationTransform(32)


def labels_of(dataset):
    return [dataset.get_data_info(row)['gt_label'] for row in range(len(dataset))]


def test_imagenet_folders(tmp_path):
    write_classes(tmp_path / 'train', 2)
    write_classes(tmp_path / 'val', 1, seed=1)
    data = find_classification(tmp_path, TRANSFORM)
    assert {name: labels_of(dataset) for name, dataset in data.items()} == dict(train=[0, 0, 1, 1, 2, 2], val=[0, 1, 2])
    assert data['train'][0]['inputs'].shape == (3, 32, 32)


def test_flat_validation_images_of_imagenet(tmp_path):
    write_classes(tmp_path / 'train', 1)
    write_classes(tmp_path / 'classes', 1)
    (tmp_path / 'val').mkdir()
    for number, name in enumerate(('red', 'blue', 'green')):
        (tmp_path / f'classes/{name}/{name}_0_0.png').rename(tmp_path / f'val/ILSVRC2012_val_{number}.png')
    with pytest.raises(MissingDataError, match='expected val/<class>/, or .*meta/val.txt'):
        find_classification(tmp_path, TRANSFORM)
    (tmp_path / 'meta').mkdir()
    file_list = tmp_path / 'meta/val.txt'
    file_list.write_text('ILSVRC2012_val_0.png 2\nILSVRC2012_val_1.png 0\nILSVRC2012_val_2.png 1\n')
    data = find_classification(tmp_path, TRANSFORM)['val']
    assert labels_of(data) == [2, 0, 1]
    assert [int(data[row]['inputs'].float().mean((1, 2)).argmax()) for row in range(3)] == [2, 0, 1]
    for wrong in ('ILSVRC2012_val_0.png 3', 'ILSVRC2012_val_0.png'):
        file_list.write_text(f'ILSVRC2012_val_0.png 2\n{wrong}\n')
        with pytest.raises(ValueError, match=r'val.txt:2 is .*expected a path and a class of 0 ... 2'):
            find_classification(tmp_path, TRANSFORM)


def test_composites(tmp_path):
    for part, count in (('bank', 2), ('seen', 1), ('test', 1)):
        write_classes(tmp_path / 'classes' / part, count, classes=('red',))
        files = [dict(path=f'{part}/red/red_0_{index}.png', label=0, identity=index) for index in range(count)]
        (tmp_path / f'classes/{part}.json').write_text(json.dumps(dict(classes=['red'], files=files)))
    data = find_classification(tmp_path, TRANSFORM)
    assert {name: len(dataset) for name, dataset in data.items()} == dict(train=2, seen=1, test=1)


def test_cifar10(tmp_path, monkeypatch):
    folder = tmp_path / CIFAR10Images.base_folder
    folder.mkdir()
    content = pickle.dumps(dict(data=np.zeros((2, 3072), np.uint8), labels=[3, 7]))
    for split in ('train_list', 'test_list'):
        names = [name for name, _ in getattr(CIFAR10Images, split)]
        monkeypatch.setattr(CIFAR10Images, split, [[name, hashlib.md5(content).hexdigest()] for name in names])
        for name in names:
            (folder / name).write_bytes(content)
    data = find_classification(tmp_path, TRANSFORM)
    assert labels_of(data['train']) == [3, 7] * 5
    assert labels_of(data['test']) == [3, 7]
    assert data['test'][0]['inputs'].shape == (3, 32, 32)


def test_stl10(tmp_path):
    for name, labels in dict(train=[1, 10], test=[2]).items():
        np.zeros((len(labels), 3, 96, 96), np.uint8).tofile(tmp_path / f'{name}_X.bin')
        np.array(labels, np.uint8).tofile(tmp_path / f'{name}_y.bin')
    (tmp_path / 'class_names.txt').write_text('\n'.join('abcdefghij'))
    data = find_classification(tmp_path, TRANSFORM)
    assert labels_of(data['train']) == [0, 9]
    assert data['test'][0]['inputs'].shape == (3, 32, 32)


def test_missing_and_contradictory_data(tmp_path):
    with pytest.raises(MissingDataError, match='has no labeled images: expected classes/'):
        find_classification(tmp_path, TRANSFORM)
    write_classes(tmp_path / 'train', 1)
    write_classes(tmp_path / 'val', 1, classes=('blue', 'green'))
    with pytest.raises(ValueError, match='train and val have different classes'):
        find_classification(tmp_path, TRANSFORM)


def test_lists_of_simclr(tmp_path):
    write_classes(tmp_path / 'train', 2)
    write_classes(tmp_path / 'val', 1)
    train = find_classification(tmp_path, TRANSFORM)['train']
    path = tmp_path / '1percent.txt'
    path.write_text('red_0_1.png\nblue_0_0.png\n')
    assert find_subset_lists(tmp_path) == {'1%': path}
    assert read_subset_list(path, train).tolist() == [5, 0]
    path.write_text('red_0_1.png\nn01440764_1.JPEG\n')
    with pytest.raises(ValueError, match='1 images that are not in the training set, such as n01440764_1.JPEG'):
        read_subset_list(path, train)
    with pytest.raises(ValueError, match='chooses images by file name, which TinyImages does not have'):
        read_subset_list(path, TinyImages([0]))
    path.write_text('')
    with pytest.raises(ValueError, match='is empty'):
        read_subset_list(path, train)
    with pytest.raises(FileNotFoundError, match='no list of images'):
        read_subset_list(tmp_path / 'none.txt', train)


@pytest.mark.parametrize(('counts', 'expected'), [(2, [2, 2, 1]), (0.5, [4, 1, 1]), (0.01, [1, 1, 1])])
def test_draws_of_every_class(counts, expected):
    labels = np.array([0] * 8 + [1] * 2 + [2])
    rows = draw_per_class(labels, counts, np.random.default_rng(0))
    assert np.bincount(labels[rows]).tolist() == expected
    assert np.array_equal(rows, np.unique(rows))
    assert not np.array_equal(rows, draw_per_class(labels, 2, np.random.default_rng(1)))


def test_draws_spare_images_of_every_class():
    labels = np.array([0, 0, 0, 1])
    for counts, drawn in ((0.1, 1), (9, 2)):
        rows = draw_per_class(labels, counts, np.random.default_rng(0), spare=1)
        assert labels[rows].tolist() == [0] * drawn
    assert draw_per_class(labels, 1, np.random.default_rng(0), spare=5).size == 0
