"""Every segmentation config trains; a segmentor starts from a pretrained encoder, and learns."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from PIL import Image
from testing.distributed import run_distributed
from testing.segmentation_images import write_segmentation_set

from mm_sop.encoders.checkpoint import WeightsError
from mm_sop.engine.detection import evaluate_detector
from mm_sop.engine.launch import launch
from mm_sop.report.run_log import read_scalars
from mm_sop.utils.config import load_config

CONFIGS = ['linear_r18_composites', 'fpn_r18_composites', 'linear_vitt_composites', 'fpn_vitt_composites']
CONFIGS += ['linear_vits_ade20k', 'fpn_vits_ade20k', 'linear_r50_ade20k', 'fpn_r50_ade20k']


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('segmentation')
    write_segmentation_set(folder, size=(96, 64))
    return folder


def find_step(pipeline, type):
    return next((step for step in pipeline if step['type'] == type), {})


def small_config(repository, name, images, **options):
    """A config with small images, two iterations and no worker processes."""
    config = load_config(repository / f'configs/segmentation/segmentation_{name}.py')
    datasets = [config.train_dataloader.dataset.dataset, config.val_dataloader.dataset]
    for dataset in datasets:
        dataset.data_root = str(images)
        for type in ('RandomResize', 'mmdet.Resize'):
            find_step(dataset.pipeline, type).update(scale=(96, 64))
        find_step(dataset.pipeline, 'mmdet.RandomCrop').update(crop_size=(64, 64))
    loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
    short = dict(train_dataloader=loader, val_dataloader=loader, train_cfg=dict(max_iters=2))
    config.merge_from_dict(dict(short, **options))
    return config


@pytest.mark.parametrize('name', CONFIGS)
def test_two_iterations_of_every_config(repository, work_dir, images, name):
    config = small_config(repository, name, images, **{'model.window': None})
    runner = launch(config, str(work_dir), pretrained='none')
    assert runner.iter == 2
    scalars = read_scalars(work_dir)
    assert 0 < scalars['loss_seg'][1][-1] < 10
    assert 0 <= scalars['mIoU'][1][-1] <= scalars['aAcc'][1][-1] + 100
    width, height = Image.open(work_dir / 'segmentation.png').size
    assert width > 3 * 256 and height > 4 * 170


def test_every_config_is_trained_above(repository):
    assert {path.stem for path in (repository / 'configs/segmentation').glob('*.py')} == {
        f'segmentation_{name}' for name in CONFIGS
    }


def test_a_pretrained_encoder_is_loaded_completely(repository, work_dir, images):
    config = small_config(repository, 'linear_r18_composites', images)
    backbone = MODELS.build(Config.fromfile(repository / 'configs/sop/r18_composites.py').model.backbone)
    weights = {f'teacher.backbone.{name}': value for name, value in backbone.state_dict().items()}
    torch.save(dict(state_dict=weights), work_dir / 'pretrained.pth')
    runner = launch(config, str(work_dir / 'run'), pretrained=str(work_dir / 'pretrained.pth'))
    for name, value in runner.model.backbone.state_dict().items():
        assert torch.equal(value, weights[f'teacher.backbone.{name}']), name


def test_an_encoder_must_be_named(repository, work_dir, images):
    config = small_config(repository, 'linear_r18_composites', images)
    with pytest.raises(WeightsError, match='--pretrained'):
        launch(config, str(work_dir))


@pytest.mark.learning
def test_a_decoder_learns_the_rectangles_and_is_tested(repository, work_dir, images, seed, expect):
    length = dict(max_iters=40, max_epochs=20, val_interval=20)
    config = small_config(repository, 'fpn_r18_composites', images, train_cfg=length, param_scheduler=[])
    config.optim_wrapper.optimizer.lr = 2e-3
    config.auto_scale_lr.enable = False
    config.default_hooks.checkpoint.epochs = -1
    launch(config, str(work_dir), pretrained='none', seed=seed)
    scalars = read_scalars(work_dir)
    expect('pixel accuracy', scalars['aAcc'][1][-1], above=80)
    expect('mIoU', scalars['mIoU'][1][-1], above=50)

    config.test_dataloader = config.val_dataloader
    result = evaluate_detector(config, work_dir / 'iter_40.pth', work_dir / 'test')
    assert result['metrics']['mIoU'] == pytest.approx(scalars['mIoU'][1][-1])
    assert '| mIoU |' in (work_dir / 'test/iter_40.md').read_text()


def train_in_process(rank, world_size, repository, images, work_dir):
    config = small_config(repository, 'fpn_vitt_composites', images, train_cfg=dict(max_iters=3))
    runner = launch(config, work_dir, pretrained='none', launcher='pytorch')
    weights = {name: value.detach().clone() for name, value in runner.model.module.named_parameters()}
    return weights, runner.iter, len(runner.train_dataloader), read_scalars(Path(work_dir))


def test_a_transformer_with_a_pyramid_in_two_processes(repository, work_dir, images):
    ranks = run_distributed(train_in_process, repository, images, str(work_dir))
    (first, iterations, batches, scalars), (second, *_) = ranks
    assert (iterations, batches) == (3, 1)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert 0 < scalars['loss_seg'][1][-1] < 10
    assert 0 <= scalars['mIoU'][1][-1] <= 100
