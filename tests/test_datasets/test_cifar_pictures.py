import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS

from mm_sop.datasets import CIFAR10Pictures, CIFAR100Pictures

CASES = [(CIFAR10Pictures, 'labels'), (CIFAR100Pictures, 'fine_labels')]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Both data sets in the published file format, with 8 pictures per file."""
    folders = {}
    for dataset, labels in CASES:
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


@pytest.mark.parametrize(('dataset', 'labels'), CASES)
def test_pictures_are_bgr_and_have_labels_only_if_asked_for(folders, dataset, labels):
    root = folders[dataset.__name__]
    path = Path(root, dataset.base_folder, dataset.train_list[0][0])
    stored = np.frombuffer(pickle.loads(path.read_bytes())['data'][3], np.uint8).reshape(3, 32, 32)
    plain, labelled = (
        DATASETS.build(dict(type=dataset.__name__, data_root=root, labelled=flag)) for flag in (False, True)
    )
    info = plain.get_data_info(3)
    assert set(info) == {'img', 'img_shape', 'ori_shape', 'sample_idx'}
    assert info['img'].dtype == np.uint8
    assert info['img_shape'] == (32, 32)
    np.testing.assert_array_equal(info['img'], stored.transpose(1, 2, 0)[..., ::-1])
    assert labelled.get_data_info(3)['gt_label'] == 3
    assert len(plain) == 8 * len(dataset.train_list)
    assert len(DATASETS.build(dict(type=dataset.__name__, data_root=root, split='test'))) == 8


@pytest.mark.parametrize('name', ['r18_cifar10', 'r18_cifar100'])
def test_configs_load_two_views_without_labels_and_evaluate_with_labels(repository, folders, name):
    config = Config.fromfile(repository / f'configs/resa/resa_{name}.py')
    innermost = config.train_dataloader.dataset.dataset
    root = folders[innermost.type]
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


def test_normalisation_is_that_of_the_data_set(repository):
    statistics = dict(
        r18_cifar10=([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        r18_cifar100=([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    )
    for name, (mean, std) in statistics.items():
        preprocessor = Config.fromfile(repository / f'configs/resa/resa_{name}.py').data_preprocessor
        np.testing.assert_allclose(preprocessor.mean, 255 * np.array(mean))
        np.testing.assert_allclose(preprocessor.std, 255 * np.array(std))
        assert preprocessor.to_rgb
