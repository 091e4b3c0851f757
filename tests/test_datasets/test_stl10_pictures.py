"""STL-10 in the binary format of its authors."""

import numpy as np
import pytest

from mm_sop.datasets import STL10Pictures


@pytest.fixture
def stl10(tmp_path):
    """Two training, one test and three unlabelled pictures; returns the folder and their RGB arrays."""
    arrays = {}
    for split, count in dict(train=2, test=1, unlabeled=3).items():
        arrays[split] = np.random.default_rng(count).integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        # Channel, column, row.
        arrays[split].transpose(0, 3, 2, 1).tofile(tmp_path / f'{split}_X.bin')
    np.array([10, 1], np.uint8).tofile(tmp_path / 'train_y.bin')
    np.array([3], np.uint8).tofile(tmp_path / 'test_y.bin')
    names = ['airplane', 'bird', 'car', 'cat', 'deer', 'dog', 'horse', 'monkey', 'ship', 'truck']
    (tmp_path / 'class_names.txt').write_text('\n'.join(names) + '\n')
    return tmp_path, arrays


def test_pretraining_pictures_are_bgr_and_have_no_label(stl10):
    folder, arrays = stl10
    dataset = STL10Pictures(folder)
    assert len(dataset) == 5
    expected = np.concatenate([arrays['train'], arrays['unlabeled']])
    for index in range(5):
        info = dataset.get_data_info(index)
        assert np.array_equal(info['img'], expected[index][..., ::-1])
        assert info['img'].flags.c_contiguous
        assert 'gt_label' not in info
        assert info['sample_idx'] == index


def test_labels_count_from_zero(stl10):
    dataset = STL10Pictures(stl10[0], split='train+test', labelled=True)
    assert [dataset.get_data_info(index)['gt_label'] for index in range(3)] == [9, 0, 2]
    assert dataset.metainfo['classes'][9] == 'truck'


def test_bad_files_and_arguments(stl10):
    folder, _ = stl10
    with pytest.raises(ValueError, match="split='validation'"):
        STL10Pictures(folder, split='validation')
    with pytest.raises(ValueError, match='have no labels'):
        STL10Pictures(folder, labelled=True)
    with pytest.raises(FileNotFoundError, match='unpacked folder stl10_binary'):
        STL10Pictures(folder / 'missing')
    with open(folder / 'train_X.bin', 'ab') as file:
        file.write(b'0')
    with pytest.raises(ValueError, match='not a multiple of 27,648'):
        STL10Pictures(folder)
    np.array([1, 2], np.uint8).tofile(folder / 'test_y.bin')
    with pytest.raises(ValueError, match='2 labels for 1 pictures'):
        STL10Pictures(folder, split='test', labelled=True)
