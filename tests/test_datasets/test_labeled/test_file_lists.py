import pytest
from mmpretrain.registry import DATASETS
from testing.evaluation_encoders import write_classes

from mm_sop.datasets.labeled.folders import rows_of_list


@pytest.fixture
def folder(tmp_path):
    write_classes(tmp_path / 'train', 3)
    return tmp_path


def build(folder):
    return DATASETS.build(dict(type='ListedImages', data_root=str(folder / 'train'), subset=str(folder / 'list.txt')))


def test_images_of_the_list_in_its_order(folder):
    (folder / 'list.txt').write_text('red_0_1.png\n\nsomewhere/blue/blue_0_2.png\n')
    dataset = build(folder)
    infos = [dataset.get_data_info(row) for row in range(len(dataset))]
    assert [info['img_path'].split('/')[-1] for info in infos] == ['red_0_1.png', 'blue_0_2.png']
    assert [info['gt_label'] for info in infos] == [2, 0]
    assert dataset.metainfo['classes'] == ('blue', 'green', 'red')


def test_bad_lists(folder):
    with pytest.raises(FileNotFoundError, match='no list of images'):
        build(folder)
    (folder / 'list.txt').write_text('\n')
    with pytest.raises(ValueError, match='list.txt is empty'):
        build(folder)
    (folder / 'list.txt').write_text('red_0_1.png\nred_9.png\n')
    with pytest.raises(ValueError, match='names 1 images that are not in the training set, such as red_9.png'):
        build(folder)


FILES = ['/data/train/cat/1.jpg', '/data/train/dog/1.jpg', '/data/train/dog/2.v1.jpg', '/data/train/dog/old/2.v1.png']


@pytest.mark.parametrize(
    ('entries', 'expected'),
    [
        (['dog/1.jpg', 'cat/1.jpg'], [1, 0]),
        (['cat/1', 'dog/1', '2.v1.jpg'], [0, 1, 2]),
        (['/other/place/train/dog/1.jpg', './train/cat/1'], [1, 0]),
        (['2.v1.png', 'dog/2.v1'], [3, 2]),
        (['train/dog/old/2.v1'], [3]),
    ],
)
def test_entries_match_by_path(tmp_path, entries, expected):
    path = tmp_path / 'list.txt'
    path.write_text('\n'.join(entries))
    assert rows_of_list(path, FILES, '/data/train') == expected


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        (
            ['2.v1.png', '1.jpg'],
            '1.jpg may be /data/train/cat/1.jpg or /data/train/dog/1.jpg: write it with its folder',
        ),
        (['2.v1'], '2.v1 may be /data/train/dog/2.v1.jpg or /data/train/dog/old/2.v1.png'),
        (['dog/1.jpg', 'bird/1.jpg'], '1 images that are not in the training set, such as bird/1.jpg'),
        (['cat/2.v1.jpg'], 'such as cat/2.v1.jpg'),
        (['dog/1.jpg', 'cat/1.jpg', 'train/dog/1'], 'names /data/train/dog/1.jpg twice, as dog/1.jpg and train/dog/1'),
    ],
)
def test_entries_that_are_not_one_image_are_refused(tmp_path, entries, message):
    path = tmp_path / 'list.txt'
    path.write_text('\n'.join(entries))
    with pytest.raises(ValueError, match=message):
        rows_of_list(path, FILES, '/data/train')


def test_two_classes_with_one_file_name(tmp_path):
    for name in ('cat', 'dog'):
        write_classes(tmp_path / 'train', 1, classes=(name,))
        (tmp_path / f'train/{name}/{name}_0_0.png').rename(tmp_path / f'train/{name}/1.png')
    (tmp_path / 'list.txt').write_text('dog/1.png\ncat/1.png\n')
    dataset = build(tmp_path)
    assert [dataset.get_data_info(row)['gt_label'] for row in range(2)] == [1, 0]
