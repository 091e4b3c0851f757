"""Every config of a detector builds, trains two iterations and is evaluated, on small pictures."""

import math
from pathlib import Path

import pytest
from detection_data import shrink, write_coco, write_voc
from mmdet.datasets import CocoDataset, VOCDataset
from mmengine.config import Config

from mm_sop.engine.launch import launch, leaf_datasets

FOLDER = Path(__file__).parents[1] / 'configs/detection'
CONFIGS = sorted(FOLDER.glob('*.py'))
SCENES = Config.fromfile(FOLDER.parent / '_base_/datasets/composites_scenes.py').metainfo.classes
# The other ones of COCO inherit their evaluation.
EVALUATED = ('composites', 'voc0712', 'mask-rcnn_r50_fpn_1x', 'vitdet_vits')
# Transformers of the COCO configs, at the width of a tenth.
SMALL_ARCH = dict(embed_dims=48, num_layers=12, num_heads=3, feedforward_channels=96)


@pytest.fixture(scope='session')
def data_sets(tmp_path_factory):
    """Small data sets in the layouts of COCO, of VOC and of the scenes."""
    folder = tmp_path_factory.mktemp('detection')
    classes = CocoDataset.METAINFO['classes']
    for split in ('train', 'val'):
        write_coco(folder / 'coco', classes, f'annotations/instances_{split}2017.json', f'{split}2017')
        write_coco(folder / 'scenes', SCENES, f'annotations/instances_{split}.json', split)
    write_voc(folder / 'VOCdevkit', VOCDataset.METAINFO['classes'])
    return folder


def load_small(path, folder):
    """A config with the data in the folder, and with networks and pictures that a test can afford."""
    config = Config.fromfile(path)
    root = folder / Path(leaf_datasets(config.train_dataloader.dataset)[0].data_root).name
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.pop('worker_init_fn', None)
        for leaf in leaf_datasets(loader.dataset):
            leaf.data_root = str(root)
            shrink(leaf.pipeline)
    if config.val_evaluator.type == 'CocoMetric':
        config.val_evaluator.ann_file = str(root / leaf_datasets(config.val_dataloader.dataset)[0].ann_file)
    config.model.data_preprocessor.pad_size_divisor = 32
    make_cheap(config.model)
    if config.model.backbone.get('arch') in ('base', 'deit-small'):
        narrow(config.model)
    config.train_cfg.update(max_iters=2, max_epochs=None, val_interval=1)
    if not any(part in path.name for part in EVALUATED):
        for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
            config.pop(key)
    config.log_level = 'ERROR'
    return config


def make_cheap(node):
    """Fewer proposals and narrower layers behind them, in place."""
    limits = dict(nms_pre=32, max_per_img=8, num=8, fc_out_channels=16, score_thr=0.0)
    for key, value in node.items():
        if key in limits:
            node[key] = limits[key]
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                make_cheap(item)


def narrow(model):
    width = {'base': 768, 'deit-small': 384}[model.backbone.arch]
    model.backbone.update(arch=SMALL_ARCH, img_size=96)

    def replace(node):
        for key, value in node.items():
            if value == width:
                node[key] = 48
            elif isinstance(value, list):
                node[key] = [48 if item == width else item for item in value]
        for value in node.values():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    replace(item)

    replace(model)


def is_repetition(path):
    """Configs of a double schedule differ in nothing else, which is tested, too."""
    return '_2x_' in path.name


@pytest.mark.parametrize('path', [path for path in CONFIGS if not is_repetition(path)], ids=lambda path: path.stem)
def test_trains_two_iterations(path, data_sets, work_dir):
    runner = launch(load_small(path, data_sets), str(work_dir), pretrained='none')
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    assert all(map(math.isfinite, scalars['train/loss']._log_history))
    assert scalars['train/loss']._log_history.size == 2
    assert any(name.endswith('mAP') for name in scalars) == any(part in path.name for part in EVALUATED)
    assert (work_dir / 'last_checkpoint').is_file()


@pytest.mark.parametrize('path', filter(is_repetition, CONFIGS), ids=lambda path: path.stem)
def test_double_schedule(path):
    double, single = Config.fromfile(path), Config.fromfile(str(path).replace('_2x_', '_1x_'))
    assert double.train_cfg.max_epochs == 2 * single.train_cfg.max_epochs == 24
    assert double.param_scheduler[1].milestones == [2 * value for value in single.param_scheduler[1].milestones]
    for key in ('model', 'train_dataloader', 'val_evaluator', 'optim_wrapper'):
        assert double[key] == single[key]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_starts_from_a_checkpoint_of_this_project(path):
    """Without being told what from, no run begins."""
    config = Config.fromfile(path)
    assert config.default_scope == 'mmdet'
    assert config.model.init_cfg.type == 'PretrainedBackbone'
    assert config.model.init_cfg.checkpoint is None
    assert config.model.backbone.get('init_cfg') is None
    assert 'custom_imports' in config
