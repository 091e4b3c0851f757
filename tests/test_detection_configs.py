"""Every config of a detector builds, trains two iterations and is evaluated, on small images."""

import math
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmdet.datasets import CocoDataset, VOCDataset
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from testing.detection_data import shrink, write_coco, write_voc
from torch.nn import LayerNorm

from mm_sop.encoders.safe_config import check_config
from mm_sop.engine.launch import launch
from mm_sop.utils.config import leaf_datasets

FOLDER = Path(__file__).parents[1] / 'configs/detection'
CONFIGS = sorted(FOLDER.glob('*.py'))
SCENES = Config.fromfile(FOLDER.parent / '_base_/datasets/composites_scenes.py').metainfo.classes
# The other ones of COCO inherit their evaluation.
EVALUATED = ('composites', 'voc0712', 'mask-rcnn_r50_fpn_1x', 'vitdet_vits')
# Transformers of the COCO configs, at the width of a tenth.
SMALL_ARCH = dict(embed_dims=48, num_layers=12, num_heads=3, feedforward_channels=96)


@pytest.fixture(scope='session')
def data_sets(tmp_path_factory):
    """Small datasets in the layouts of COCO, of VOC and of the scenes."""
    folder = tmp_path_factory.mktemp('detection')
    classes = CocoDataset.METAINFO['classes']
    for split in ('train', 'val'):
        write_coco(folder / 'coco', classes, f'annotations/instances_{split}2017.json', f'{split}2017')
        write_coco(folder / 'scenes', SCENES, f'annotations/instances_{split}.json', split)
    write_voc(folder / 'VOCdevkit', VOCDataset.METAINFO['classes'])
    return folder


def load_small(path, folder):
    """A config with the data in the folder, and with networks and images that a test can afford."""
    config = Config.fromfile(path)
    # What a run writes into its checkpoints can be read without trust.
    check_config(config, 'w.pth', 'backbone', 'model', 'data_preprocessor', 'test_dataloader')
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


@pytest.mark.parametrize(
    ('name', 'drop_path', 'patches'), [('vitb_1x_coco', 0.2, (42, 68)), ('vits_1x_coco', 0.1, (50, 63))]
)
def test_cascade_is_that_of_ibots_evaluation(name, drop_path, patches):
    config = Config.fromfile(FOLDER / f'cascade-mask-rcnn_{name}.py')
    DefaultScope.get_instance(name, scope_name='mmdet')
    with torch.device('meta'), mock.patch('torch.linspace', partial(torch.linspace, device='cpu')):
        model = MODELS.build(config.model)
    backbone = model.backbone
    assert (backbone.layers[-1].attn.out_drop.drop_prob, tuple(backbone.patch_embed.init_out_size)) == (
        drop_path,
        patches,
    )
    assert not hasattr(backbone, 'ln1')
    assert isinstance(model.neck[0].layers[0][1], torch.nn.SyncBatchNorm)
    for head, std in zip(model.roi_head.bbox_head, (0.1, 0.05, 0.033), strict=True):
        assert (len(head.shared_convs), len(head.shared_fcs)) == (4, 1)
        assert all(isinstance(conv.norm, torch.nn.SyncBatchNorm) for conv in head.shared_convs)
        assert (type(head.loss_bbox).__name__, head.loss_bbox.loss_weight) == ('GIoULoss', 10)
        assert head.reg_decoded_bbox and not head.reg_class_agnostic
        assert head.fc_reg.out_features == 4 * 80
        assert head.bbox_coder.stds[0] == std
    assert config.optim_wrapper.paramwise_cfg.layer_decay_rate == 0.75
    (whole,), (enlarged, crop, again) = config.train_dataloader.dataset.pipeline[3].transforms
    assert whole.scales == again.scales == [(1333, side) for side in range(480, 801, 32)]
    assert enlarged.scales == [(1333, 400), (1333, 500), (1333, 600)]
    assert crop.crop_size == (384, 600)


def test_vitdet_decays_what_its_authors_decay():
    """Everything but position embeddings and the norms of the transformer; [CLS], which they lack, stays as well."""
    config = Config.fromfile(FOLDER / 'vitdet_vits_100e_coco.py')
    narrow(config.model)
    DefaultScope.get_instance('decay', scope_name='mmdet')
    model = MODELS.build(config.model)
    del config.optim_wrapper['type']
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    decays = {id(parameter): group['weight_decay'] for group in groups for parameter in group['params']}
    norms = [f'backbone.{name}' for name, module in model.backbone.named_modules() if isinstance(module, LayerNorm)]
    for name, parameter in model.named_parameters():
        spared = name in ('backbone.cls_token', 'backbone.pos_embed') or name.rpartition('.')[0] in norms
        assert decays[id(parameter)] == (0.0 if spared else 0.1), name


def test_pyramid_of_a_resnet_has_norms_in_its_heads():
    config = Config.fromfile(FOLDER / 'mask-rcnn_r50_fpn_1x_coco.py')
    DefaultScope.get_instance('resnet', scope_name='mmdet')
    model = MODELS.build(config.model)
    heads = [model.roi_head.bbox_head.shared_convs, model.roi_head.mask_head.convs]
    for convs in (model.neck.lateral_convs, model.neck.fpn_convs, *heads):
        assert len(convs) == 4
        assert all(isinstance(conv.norm, torch.nn.SyncBatchNorm) for conv in convs)


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
