import pytest
from evaluation_encoders import write_classes
from mmpretrain.registry import DATASETS


@pytest.fixture
def folder(tmp_path):
    write_classes(tmp_path / 'train', 3)
    return tmp_path


def build(folder):
    return DATASETS.build(dict(type='ListedImages', data_root=str(folder / 'train'), subset=str(folder / 'list.txt')))


def test_pictures_of_the_list_in_its_order(folder):
    (folder / 'list.txt').write_text('red_0_1.png\n\nsomewhere/blue_0_2.png\n')
    dataset = build(folder)
    infos = [dataset.get_data_info(row) for row in range(len(dataset))]
    assert [info['img_path'].split('/')[-1] for info in infos] == ['red_0_1.png', 'blue_0_2.png']
    assert [info['gt_label'] for info in infos] == [2, 0]
    assert dataset.metainfo['classes'] == ('blue', 'green', 'red')


def test_bad_lists(folder):
    with pytest.raises(FileNotFoundError, match='no list of pictures'):
        build(folder)
    (folder / 'list.txt').write_text('\n')
    with pytest.raises(ValueError, match='list.txt is empty'):
        build(folder)
    (folder / 'list.txt').write_text('red_0_1.png\nred_9.png\n')
    with pytest.raises(ValueError, match='names 1 pictures that are not in the training set, such as red_9.png'):
        build(folder)
