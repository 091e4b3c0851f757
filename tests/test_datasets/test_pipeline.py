import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS, TRANSFORMS
from PIL import Image
from testing.distributed import run_distributed

import mm_sop  # noqa: F401

IMAGENET, IMAGENET_2VIEWS = '_base_/datasets/imagenet_sop', '_base_/datasets/imagenet_sop_2views'
COMPOSITES = 'sop/quickstart'


def read_config(repository, name):
    return Config.fromfile(repository / f'configs/{name}.py')


def build_loader(config, folder, batch_size=4):
    settings = config.train_dataloader
    settings.update(batch_size=batch_size, num_workers=0, persistent_workers=False)
    settings.dataset.dataset.data_root = str(folder)
    settings.pop('pin_memory', None)
    return Runner.build_dataloader(settings, seed=0)


@pytest.mark.parametrize(
    ('name', 'sizes', 'grid'),
    [
        (IMAGENET, [224] * 2 + [96] * 10, 14),
        (IMAGENET_2VIEWS, [224] * 2, 14),
        (COMPOSITES, [48] * 2, 6),
    ],
)
def test_base_config_loads_any_folder(repository, images, name, sizes, grid):
    config = read_config(repository, name)
    batch = next(iter(build_loader(config, images)))
    assert [view.shape for view in batch['inputs']] == [(4, 3, size, size) for size in sizes]
    assert all(view.dtype == torch.uint8 for view in batch['inputs'])
    for sample in batch['data_samples']:
        assert isinstance(sample.mask, np.ndarray)
        assert sample.mask.shape == (2, grid, grid)
        assert sample.mask.dtype == bool
        assert sample.unreadable == ()
        assert 'gt_label' not in sample
    # No two views are alike.
    flat = [view.flatten(1) for view in batch['inputs']]
    assert not any(torch.equal(flat[i], flat[j]) for i in range(len(flat)) for j in range(i) if sizes[i] == sizes[j])
    processed = MODELS.build(config.data_preprocessor)(batch)
    assert [view.dtype for view in processed['inputs']] == [torch.float32] * len(sizes)


@pytest.mark.parametrize('name', [IMAGENET, COMPOSITES])
def test_gray_images_pass_through_all_steps(repository, images, name):
    config = read_config(repository, name)
    config.train_dataloader.dataset.dataset.pipeline[0].channels = 1
    views = [view for batch in build_loader(config, images) for view in batch['inputs']]
    assert all(view.shape[:2] == (4, 1) and view.dtype == torch.uint8 for view in views)
    assert all(view.float().std() > 1 for view in views)


def view_transforms(config):
    """Built transforms by name, for each kind of view."""
    pipelines = TRANSFORMS.build(config.train_pipeline[1]).pipelines
    return [{type(transform).__name__: transform for transform in pipeline} for pipeline in pipelines]


@pytest.mark.parametrize(
    ('name', 'scales'),
    [(IMAGENET, [(0.32, 1), (0.32, 1), (0.05, 0.32)]), (IMAGENET_2VIEWS, [(0.14, 1)] * 2)],
)
def test_augmentations_are_those_of_sop(repository, name, scales):
    views = view_transforms(read_config(repository, name))
    assert [view['FastRandomResizedCrop'].crop_ratio_range for view in views] == scales
    assert [view['GaussianBlur'].prob for view in views] == [1.0, 0.1, 0.5][: len(views)]
    assert [view['Solarize'].prob for view in views if 'Solarize' in view] == [0.2]
    for view in views:
        jitter = view['RandomApply'].transforms.transforms[0]
        assert view['RandomApply'].prob == 0.8
        assert jitter.brightness == jitter.contrast == pytest.approx((0.6, 1.4))
        assert jitter.saturation == pytest.approx((0.8, 1.2))
        assert jitter.hue == pytest.approx((-0.1, 0.1))
        assert view['RandomFlip'].prob == 0.5
        assert view['RandomGrayscale'].prob == 0.2
        radii = np.array([view['GaussianBlur'].random_magnitude() for _ in range(2000)])
        assert 0.1 <= radii.min() < 0.12 and 1.98 < radii.max() <= 2.0
        assert radii.mean() == pytest.approx(1.05, abs=0.05)


def test_composites_recipe_is_0_4_times_that_of_sop(repository):
    (view,) = view_transforms(read_config(repository, COMPOSITES))
    jitter = view['RandomApply'].transforms.transforms[0]
    assert view['FastRandomResizedCrop'].crop_ratio_range == (0.5, 1.0)
    assert (jitter.brightness[1], jitter.saturation[1], jitter.hue[1]) == pytest.approx((1.16, 1.08, 0.04))
    assert view['RandomGrayscale'].prob == pytest.approx(0.4 * 0.2)


@pytest.mark.parametrize('name', [IMAGENET, IMAGENET_2VIEWS, COMPOSITES])
def test_red_images_are_red_at_the_model(repository, tmp_path, name):
    for number in range(4):
        Image.new('RGB', (80, 80), (255, 0, 0)).save(tmp_path / f'{number}.png')
    config = read_config(repository, name)
    for pipeline in config.train_dataloader.dataset.dataset.pipeline[1].transforms:
        pipeline[:] = [
            step for step in pipeline if step.type in ('FastRandomResizedCrop', 'RandomFlip', 'GaussianBlur')
        ]
    batch = next(iter(build_loader(config, tmp_path)))
    preprocessor = MODELS.build(config.data_preprocessor)
    for view in preprocessor(batch)['inputs']:
        colors = view * preprocessor.std + preprocessor.mean
        assert torch.allclose(colors, torch.tensor([255.0, 0.0, 0.0]).view(3, 1, 1).expand_as(colors), atol=1e-3)


def test_gray_has_the_luma_of_the_color(repository, tmp_path):
    Image.new('RGB', (80, 80), (255, 0, 0)).save(tmp_path / 'red.png')
    load = TRANSFORMS.build(dict(type='LoadImage'))
    for view in view_transforms(read_config(repository, IMAGENET)):
        view['RandomGrayscale'].prob = 1.0
        gray = view['RandomGrayscale'](load(dict(img_path=str(tmp_path / 'red.png'))))['img']
        assert np.unique(gray).tolist() == [76]


def load_first_batches(rank, world_size, repository, images, name):
    init_default_scope('mmpretrain')
    config = read_config(repository, name)
    loader = build_loader(config, images, batch_size=4 // world_size)
    loader.sampler.set_epoch(1)
    batches = []
    for batch in loader:
        views = torch.cat([view.flatten(1) for view in batch['inputs']], 1)
        batches.append(
            {sample.img_path: (row, sample.mask) for row, sample in zip(views, batch['data_samples'], strict=True)}
        )
    return batches


@pytest.mark.parametrize('name', [IMAGENET_2VIEWS, COMPOSITES])
def test_two_processes_see_the_batches_of_one(repository, images, name):
    whole = load_first_batches(0, 1, repository, images, name)
    assert len(whole) == 3
    ranks = run_distributed(load_first_batches, repository, images, name)
    for expected, *parts in zip(whole, *ranks, strict=True):
        union = parts[0] | parts[1]
        assert union.keys() == expected.keys()
        for path, (pixels, mask) in expected.items():
            assert torch.equal(union[path][0], pixels)
            assert np.array_equal(union[path][1], mask)
