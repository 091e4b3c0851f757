"""Detectors through the launcher of pretraining: exact resumption, two processes, faults of the data."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from testing.detection_data import SIZE, make_annotation, write_coco
from testing.distributed import run_distributed
from testing.scripts import run_script, script_of
from testing.toy_training import differences

from mm_sop.datasets.labeled.coco_checks import AnnotationError
from mm_sop.engine.launch import launch
from mm_sop.utils.failures import LaunchError

ROOT = Path(__file__).parents[2]
SCENES = Config.fromfile(ROOT / 'configs/_base_/datasets/composites_scenes.py').metainfo.classes


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    for split in ('train', 'val'):
        write_coco(folder, SCENES, f'annotations/instances_{split}.json', split, num_images=8)
    return folder


def train(scenes, work_dir, config='mask-rcnn_r18_fpn', **options):
    """Train a detector of the composites for 4 iterations of 2 images, without validation."""
    cfg = Config.fromfile(ROOT / f'configs/detection/{config}_composites.py')
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg.pop(key)
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.pop('worker_init_fn')
    changes = {'train_cfg.max_iters': 4, 'log_level': 'ERROR', 'experiment_name': str(work_dir)}
    changes['default_hooks.checkpoint.interval'] = 1
    changes |= options.pop('changes', {})
    # A resumed run needs no pretrained backbone any more.
    pretrained = options.pop('pretrained', None if 'resume' in options else 'none')
    return launch(cfg, str(work_dir), data=str(scenes), pretrained=pretrained, cfg_options=changes, **options)


def test_resumed_run_equals_a_straight_one(scenes, work_dir):
    straight = train(scenes, work_dir / 'straight', changes={'default_hooks.checkpoint.max_keep_ckpts': -1})
    resumed = train(scenes, work_dir / 'resumed', resume=str(work_dir / 'straight/iter_2.pth'))
    assert resumed.iter == 4
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert sorted(path.name for path in (work_dir / 'resumed').glob('*.pth')) == ['iter_3.pth', 'iter_4.pth']


def test_mmdetections_own_script_trains_the_same(scenes, work_dir):
    changes = {'train_cfg.max_iters': 2, 'optim_wrapper.accumulative_counts': 2, 'auto_scale_lr.enable': True}
    runner = train(scenes, work_dir / 'ours', changes=changes)
    runner.cfg.dump(work_dir / 'detector.py')
    run_script(script_of('mmdet'), work_dir / 'detector.py', '--work-dir', work_dir / 'theirs')
    theirs = torch.load(work_dir / 'theirs/iter_2.pth', weights_only=False)
    assert differences(runner.model.state_dict(), theirs['state_dict']) == []
    rates = [group['lr'] for group in theirs['optimizer']['param_groups']]
    assert rates == [group['lr'] for group in runner.optim_wrapper.optimizer.param_groups]


@pytest.mark.parametrize('config', ['mask-rcnn_r18_fpn_frozen', 'mask-rcnn_r18_linear'])
def test_frozen_backbone_keeps_weights_and_statistics(scenes, work_dir, config):
    backbone = MODELS.build(Config.fromfile(ROOT / 'configs/sop/r18_composites.py').model.backbone)
    weights = {
        f'backbone.{name}': value + 0.1 if 'running' in name else value for name, value in backbone.state_dict().items()
    }
    torch.save(weights, work_dir / 'pretrained.pth')
    runner = train(scenes, work_dir / 'run', config, pretrained=str(work_dir / 'pretrained.pth'))
    after = runner.model.backbone.state_dict()
    for name, value in after.items():
        assert torch.equal(value, weights[f'backbone.{name}']), name
    assert runner.model.roi_head.bbox_head.fc_cls.bias.abs().sum() > 0


@pytest.mark.parametrize('options', [dict(amp=True), dict(changes={'optim_wrapper.dtype': 'bfloat16'})])
def test_half_precision_is_refused_on_the_cpu(scenes, work_dir, options, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(LaunchError, match='bfloat16 for a detector needs a CUDA device.*leave out --amp'):
        train(scenes, work_dir, **options)


def train_in_process(rank, world_size, scenes, work_dir):
    runner = train(Path(scenes), work_dir, launcher='pytorch')
    weights = {name: value.detach().clone() for name, value in runner.model.module.named_parameters()}
    return weights, runner.iter, len(runner.train_dataloader)


def test_two_processes_hold_the_same_weights(scenes, work_dir):
    (first, iterations, batches), (second, *_) = run_distributed(train_in_process, str(scenes), str(work_dir))
    assert (iterations, batches) == (4, 2)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_images_without_usable_boxes_are_trained_on_or_left_out(tmp_path, work_dir):
    content = write_coco(tmp_path, SCENES, 'annotations/instances_train.json', 'train', num_images=8)
    # Images 0 and 1 keep nothing, image 2 a box without area, which leaves it in the list without a box.
    content['annotations'] = [item for item in content['annotations'] if item['image_id'] > 2]
    content['annotations'].append(make_annotation(90, 2, (5, 5, 0, 9), 1))
    content['annotations'].append(make_annotation(91, 3, (SIZE[0] - 9, 5, 40, 30), 1))
    (tmp_path / 'annotations/instances_train.json').write_text(json.dumps(content))
    runner = train(tmp_path, work_dir)
    assert runner.iter == 4
    assert len(runner.train_dataloader.dataset) == 6


def test_undecodable_image_is_replaced_and_missing_one_refused(tmp_path, work_dir):
    write_coco(tmp_path, SCENES, 'annotations/instances_train.json', 'train', num_images=8)
    (tmp_path / 'train/1.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    train(tmp_path, work_dir, changes={'default_hooks.bad_images.max_fraction': 0.5})
    assert 'train/1.png\t' in (work_dir / 'bad_images.txt').read_text()
    (tmp_path / 'train/2.png').unlink()
    with pytest.raises(AnnotationError, match='1 of 8 images'):
        train(tmp_path, work_dir / 'second')
