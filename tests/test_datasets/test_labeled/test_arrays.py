import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS

from mm_sop.datasets import CIFAR10Images, CIFAR100Images, STL10Images

CIFAR = [(CIFAR10Images, 'labels'), (CIFAR100Images, 'fine_labels')]


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Both datasets in the published file format, with 8 images per file."""
    folders = {}
    for dataset, labels in CIFAR:
        folder = tmp_path / dataset.__name__ / dataset.base_folder
        folder.mkdir(parents=True)
        listed = {}
        for split in ('train_list', 'test_list'):
            listed[split] = [[name, write_part(folder / name, labels)] for name, _ in getattr(dataset, split)]
            monkeypatch.setattr(dataset, split, listed[split])
        folders[dataset.__name__] = str(folder.parent)
    return folders


def write_part(path, labels):
    rng = np.random.default_rng(len(path.name))
    content = pickle.dumps({'data': rng.integers(0, 256, (8, 3072), np.uint8), labels: list(range(8))})
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


@pytest.mark.parametrize(('dataset', 'labels'), CIFAR)
def test_images_are_bgr_and_have_labels_only_if_asked_for(cifar, dataset, labels):
    root = cifar[dataset.__name__]
    path = Path(root, dataset.base_folder, dataset.train_list[0][0])
    stored = np.frombuffer(pickle.loads(path.read_bytes())['data'][3], np.uint8).reshape(3, 32, 32)
    plain, labeled = (
        DATASETS.build(dict(type=dataset.__name__, data_root=root, labeled=flag)) for flag in (False, True)
    )
    info = plain.get_data_info(3)
    assert set(info) == {'img', 'img_shape', 'ori_shape', 'sample_idx'}
    assert info['img'].dtype == np.uint8
    assert info['img_shape'] == (32, 32)
    np.testing.assert_array_equal(info['img'], stored.transpose(1, 2, 0)[..., ::-1])
    assert labeled.get_data_info(3)['gt_label'] == 3
    assert len(plain) == 8 * len(dataset.train_list)
    assert len(DATASETS.build(dict(type=dataset.__name__, data_root=root, split='test'))) == 8


@pytest.mark.parametrize('name', ['r18_cifar10', 'r18_cifar100'])
def test_configs_load_two_views_without_labels_and_evaluate_with_labels(repository, cifar, name):
    config = Config.fromfile(repository / f'configs/resa/resa_{name}.py')
    innermost = config.train_dataloader.dataset.dataset
    root = cifar[innermost.type]
    innermost.data_root = root
    config.train_dataloader.update(num_workers=0, persistent_workers=False, batch_size=4)
    batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
    assert [view.shape for view in batch['inputs']] == [(4, 3, 32, 32)] * 2
    assert not any('gt_label' in sample for sample in batch['data_samples'])
    hook = next(hook for hook in config.custom_hooks if hook.type == 'KNNHook')
    for data in (hook.bank, hook.queries.test):
        assert data.type == innermost.type
        sample = DATASETS.build(dict(data, data_root=root))[0]
        assert sample['inputs'].shape == (3, 32, 32)
        assert sample['data_samples'].gt_label.item() == 0


def test_normalization_is_that_of_the_dataset(repository):
    statistics = dict(
        r18_cifar10=([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        r18_cifar100=([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    )
    for name, (mean, std) in statistics.items():
        preprocessor = Config.fromfile(repository / f'configs/resa/resa_{name}.py').data_preprocessor
        np.testing.assert_allclose(preprocessor.mean, 255 * np.array(mean))
        np.testing.assert_allclose(preprocessor.std, 255 * np.array(std))
        assert preprocessor.to_rgb


@pytest.fixture
def stl10(tmp_path):
    """Two training, one test and three unlabeled images; returns the folder and their RGB arrays."""
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


def test_pretraining_images_of_stl10_are_bgr_and_have_no_label(stl10):
    folder, arrays = stl10
    dataset = STL10Images(folder)
    assert len(dataset) == 5
    expected = np.concatenate([arrays['train'], arrays['unlabeled']])
    for index in range(5):
        info = dataset.get_data_info(index)
        assert np.array_equal(info['img'], expected[index][..., ::-1])
        assert info['img'].flags.c_contiguous
        assert 'gt_label' not in info
        assert info['sample_idx'] == index


def test_labels_of_stl10_count_from_zero(stl10):
    dataset = STL10Images(stl10[0], split='train+test', labeled=True)
    assert [dataset.get_data_info(index)['gt_label'] for index in range(3)] == [9, 0, 2]
    assert dataset.metainfo['classes'][9] == 'truck'


def test_bad_files_and_arguments_of_stl10(stl10):
    folder, _ = stl10
    with pytest.raises(ValueError, match="split='validation'"):
        STL10Images(folder, split='validation')
    with pytest.raises(ValueError, match='have no labels'):
        STL10Images(folder, labeled=True)
    with pytest.raises(FileNotFoundError, match='unpacked folder stl10_binary'):
        STL10Images(folder / 'missing')
    with open(folder / 'train_X.bin', 'ab') as file:
        file.write(b'0')
    with pytest.raises(ValueError, match='not a multiple of 27,648'):
        STL10Images(folder)
    np.array([1, 2], np.uint8).tofile(folder / 'test_y.bin')
    with pytest.raises(ValueError, match='2 labels for 1 images'):
        STL10Images(folder, split='test', labeled=True)
