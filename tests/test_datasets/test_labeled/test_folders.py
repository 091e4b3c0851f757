import json
import os

import pytest
from mmengine.dataset import ConcatDataset
from mmpretrain.registry import DATASETS
from testing.sample_images import write_images

from mm_sop.datasets.labeled.folders import check_classes


def build(data_root, **settings):
    return DATASETS.build(dict(type='LabeledImages', data_root=str(data_root), **settings))


@pytest.fixture
def folder(tmp_path):
    for name, count in (('fish', 2), ('birds', 3)):
        write_images(tmp_path / 'bank' / name, count, nested=False)
    (tmp_path / 'bank/.cache').mkdir()
    (tmp_path / 'bank/README.txt').touch()
    return tmp_path / 'bank'


def write_file_list(folder, content):
    path = folder.parent / f'{folder.name}.json'
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def infos(dataset):
    return [dataset.get_data_info(index) for index in range(len(dataset))]


def test_class_folders(folder):
    dataset = build(folder, pipeline=[dict(type='LoadImage'), dict(type='PackInputs')])
    assert dataset.metainfo['classes'] == ('birds', 'fish')
    assert [info['gt_label'] for info in infos(dataset)] == [0, 0, 0, 1, 1]
    assert all(('birds', 'fish')[info['gt_label']] in info['img_path'] for info in infos(dataset))
    assert dataset[4]['data_samples'].gt_label.tolist() == [1]
    assert dataset[4]['inputs'].shape == (3, 48, 64)


def test_file_list_gives_labels_and_identities(folder):
    files = [
        dict(path='bank/fish/000001.jpg', label=1, identity=17),
        dict(path='bank/birds/000000.jpg', label=0, identity=4),
        dict(path='bank/birds/000002.png', label=0),
    ]
    write_file_list(folder, dict(classes=['birds', 'fish'], files=files))
    dataset = build(f'{folder}/', pipeline=[dict(type='PackInputs', algorithm_keys=['identity'])])
    assert dataset.metainfo['classes'] == ('birds', 'fish')
    assert [info['gt_label'] for info in infos(dataset)] == [1, 0, 0]
    assert [info.get('identity') for info in infos(dataset)] == [17, 4, None]
    assert dataset[0]['data_samples'].identity == 17
    assert dataset[0]['data_samples'].img_path == str(folder / 'fish/000001.jpg')
    assert len(build(folder, indices=2)) == 2


def test_given_class_names_have_precedence(folder):
    assert build(folder, metainfo=dict(classes=('bird', 'shark'))).metainfo['classes'] == ('bird', 'shark')


@pytest.mark.parametrize('listed', [False, True])
def test_given_classes_number_the_images_by_name(folder, listed):
    if listed:
        write_file_list(
            folder, dict(classes=['birds', 'fish'], files=[dict(path='a.png', label=k) for k in (0, 0, 0, 1, 1)])
        )
    dataset = build(folder, metainfo=dict(classes=('fish', 'cats', 'birds')))
    assert [info['gt_label'] for info in infos(dataset)] == [2, 2, 2, 0, 0]
    for classes in (('bird', 'fish'), ('cats', 'dogs', 'cows')):
        with pytest.raises(ValueError, match='has birds.*, not among the [23] classes of its metainfo'):
            build(folder, metainfo=dict(classes=classes))


def test_numbers_of_classes_need_names(tmp_path, folder):
    (tmp_path / 'labels.txt').write_text('fish/000001.jpg 1\n')
    with pytest.raises(ValueError, match='labels.txt gives numbers of classes: name them'):
        build(folder, labels=str(tmp_path / 'labels.txt'))


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('birds',), 'bank and queries have different classes: fish only in bank'),
        (('birds', 'cats'), 'fish only in bank, cats only in queries'),
        (('fish', 'birds'), 'birds, fish in bank and fish, birds in queries'),
        (None, 'queries does not name its classes'),
    ],
)
def test_classes_of_two_datasets_are_compared(folder, classes, message):
    bank, queries = build(folder), [0]
    if classes is not None:
        queries = ConcatDataset([build(folder, metainfo=dict(classes=[*classes, *bank.metainfo['classes']]))])
        queries._metainfo['classes'] = classes
    with pytest.raises(ValueError, match=message):
        check_classes(dict(bank=bank, queries=queries))
    # A list is not another list of classes than a tuple, and unnamed classes cannot be compared.
    check_classes(dict(bank=bank, queries=build(folder, metainfo=dict(classes=['birds', 'fish']), lazy_init=True)))
    check_classes(dict(bank=[1], queries=[2]))


def test_unreadable_images_are_not_replaced(folder):
    next(folder.glob('fish/*')).write_bytes(b'')
    dataset = build(folder, pipeline=[dict(type='LoadImage')])
    with pytest.raises(Exception, match='the file is empty'):
        [dataset[index] for index in range(len(dataset))]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"classes": [', 'JSONDecodeError'),
        (dict(files=[]), "KeyError: 'classes'"),
        ([], 'TypeError'),
        (dict(classes=['a'], files=[dict(label=0)]), "KeyError: 'path'"),
        (dict(classes=['a'], files=[dict(path='x.png', label=1)]), 'label 1 of x.png with 1 classes'),
        (dict(classes=['a'], files=[dict(path='x.png', label='a')]), 'TypeError'),
        (dict(classes=['a'], files=[]), 'names no images'),
    ],
)
def test_malformed_file_lists(folder, content, message):
    path = write_file_list(folder, content)
    with pytest.raises(ValueError, match=message) as info:
        build(folder)
    assert str(path) in str(info.value)


def test_missing_and_flat_folders(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match='neither folder .*none nor file list .*none.json exists'):
        build(tmp_path / 'none')
    with pytest.raises(ValueError, match='has no class folders'):
        build(folder / 'fish')


def test_lists_of_labels_take_names_of_any_bytes(folder, tmp_path):
    name = os.fsdecode(b'birds/a\xe9\x0b.png')
    (tmp_path / 'labels.txt').write_bytes(os.fsencode(f'{name} 1\n'))
    dataset = build(folder, labels=str(tmp_path / 'labels.txt'), metainfo=dict(classes=('a', 'b')))
    assert infos(dataset)[0]['img_path'] == str(folder / name)
    assert infos(dataset)[0]['gt_label'] == 1
