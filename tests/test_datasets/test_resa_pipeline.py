import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import TRANSFORMS

CONFIGS = {
    'r50_b256_100e': dict(size=224, scale=(0.2, 1.0), jitter=0.4, blur=0.5, solarize=0.2, crops=0),
    'r50_multicrop': dict(size=224, scale=(0.32, 1.0), jitter=0.4, blur=0.5, solarize=0.2, crops=10),
    'vits': dict(size=224, scale=(0.2, 1.0), jitter=0.4, blur=0.5, solarize=0.2, crops=0),
    'r18_cifar10': dict(size=32, scale=(0.2, 1.0), jitter=0.4, blur=0.0, solarize=0.2, crops=0),
    'r18_composites': dict(size=48, scale=(0.5, 1.0), jitter=0.16, blur=0.0, solarize=0.0, crops=0),
}


def view_pipelines(config):
    """Built transforms by name, for each kind of view."""
    steps = config.train_dataloader.dataset.dataset.pipeline
    view = next(step for step in steps if step['type'] == 'FastMultiView')
    pipelines = TRANSFORMS.build(view).pipelines
    return [{type(transform).__name__: transform for transform in pipeline} for pipeline in pipelines]


@pytest.mark.parametrize('name', CONFIGS)
def test_weak_view_comes_first_and_augmentations_are_the_release_s(repository, name):
    expected = CONFIGS[name]
    weak, strong, *local = view_pipelines(Config.fromfile(repository / f'configs/resa/resa_{name}.py'))
    assert [key for key in weak if key != 'RandomFlip'] in (['RandomResizedCrop'], ['FastRandomResizedCrop'])
    for view in (weak, strong):
        crop = view.get('RandomResizedCrop') or view['FastRandomResizedCrop']
        assert crop.scale == (expected['size'],) * 2
        assert tuple(crop.crop_ratio_range) == expected['scale']
        assert crop.aspect_ratio_range == (3 / 4, 4 / 3)
        assert view['RandomFlip'].prob == 0.5
    for view in (strong, *local):
        jitter = view['RandomApply'].transforms.transforms[0]
        assert view['RandomApply'].prob == 0.8
        assert jitter.brightness[1] - 1 == pytest.approx(expected['jitter'])
        assert jitter.hue[1] == pytest.approx(expected['jitter'] / 4)
        assert view['RandomGrayscale'].prob == pytest.approx(expected['jitter'] / 2)
        assert (view['GaussianBlur'].prob if 'GaussianBlur' in view else 0) == expected['blur']
    assert (strong['Solarize'].prob if 'Solarize' in strong else 0) == expected['solarize']
    assert len(local) == bool(expected['crops'])
    for view in local:
        assert view['FastRandomResizedCrop'].scale == (96, 96)
        assert 'Solarize' not in view


@pytest.mark.parametrize('name', ['r50_b256_100e', 'r50_multicrop', 'r18_composites'])
def test_configs_load_any_folder(repository, images, name):
    config = Config.fromfile(repository / f'configs/resa/resa_{name}.py')
    loader = config.train_dataloader
    loader.update(batch_size=4, num_workers=0, persistent_workers=False)
    loader.dataset.dataset.data_root = str(images)
    batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    size, crops = CONFIGS[name]['size'], CONFIGS[name]['crops']
    assert [view.shape[-1] for view in batch['inputs']] == [size] * 2 + [96] * crops
    assert not any('gt_label' in sample for sample in batch['data_samples'])


def test_weak_view_keeps_the_colors(repository, tmp_path):
    config = Config.fromfile(repository / 'configs/resa/resa_r50_b256_100e.py')
    weak = TRANSFORMS.build(config.train_dataloader.dataset.dataset.pipeline[1]).pipelines[0]
    image = np.full((80, 60, 3), (10, 120, 200), np.uint8)
    for _ in range(5):
        view = weak(dict(img=image))['img']
        np.testing.assert_array_equal(view, np.broadcast_to(image[0, 0], (224, 224, 3)))
