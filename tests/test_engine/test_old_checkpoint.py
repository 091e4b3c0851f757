"""Checkpoints of earlier versions: tests/data/sop_before_rename.pth is iteration 6 of 12 of a tiny SOP."""

import shutil
from pathlib import Path

import pytest
import torch
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import MODELS
from testing.sample_images import write_images

import mm_sop
from mm_sop.encoders import PretrainedBackbone
from mm_sop.engine.launch import launch
from mm_sop.utils.config import load_config

CHECKPOINT = Path(__file__).parents[1] / 'data/sop_before_rename.pth'
ARCH = dict(embed_dims=12, num_layers=2, num_heads=3, feedforward_channels=24)
# Norms of tensors after iteration 12, as the version that wrote the checkpoint ended its run.
NORMS = {
    'backbone.pos_embed': 0.2972885786,
    'backbone.layers.1.attn.qkv.weight': 0.4114963617,
    'neck.layers.0.weight': 0.2634928850,
    'neck.layers.4.weight': 4.0000308814,
    'neck.layers.6.weight': 0.2161554868,
    'teacher.backbone.pos_embed': 0.2971235036,
    'teacher.backbone.layers.1.attn.qkv.weight': 0.4117506699,
    'teacher.neck.layers.6.weight': 0.2160268089,
}


def make_config(repository):
    """The config of the old run by today's names."""
    config = load_config(repository / 'configs/sop/quickstart.py')
    bank = dict(type='SupportEmbeddingBank', size=32, embed_dims=8)
    prototypes = {'num_anchors': 16, 'bank': bank}
    changes = {
        'model.backbone': dict(arch=ARCH, img_size=16, patch_size=4, stem='patch'),
        'model.neck': dict(in_channels=12, hid_channels=16, out_channels=8),
        'model.head.prototypes': prototypes,
        'model.target_generator.prototypes': prototypes,
        'train_dataloader': dict(batch_size=8, num_workers=0),
        'train_cfg.max_epochs': 4,
        'default_hooks.checkpoint': dict(type='PretrainCheckpointHook', epochs=2),
    }
    config.merge_from_dict(changes)
    config.param_scheduler[0]['end'] = 4
    for step in config.train_dataloader.dataset.dataset.pipeline:
        if step['type'] == 'FastMultiView':
            step['transforms'][0][0]['scale'] = 16
        if step['type'] == 'BlockMaskGenerator':
            step['grid'] = (4, 4)
    config.custom_hooks = [hook for hook in config.custom_hooks if hook['type'] == 'TeacherHook']
    config.vis_backends = config.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    return config


@pytest.fixture(scope='module')
def state():
    return torch.load(CHECKPOINT, weights_only=False)['state_dict']


def test_encoder_is_that_of_the_teacher(state):
    encoder = mm_sop.load(CHECKPOINT)
    assert encoder.specification.network == 'teacher' and encoder.specification.origin['iter'] == 6
    reference = VisionTransformer(arch=ARCH, img_size=16, patch_size=4, out_type='raw')
    reference.eval()
    prefix = 'teacher.backbone.'
    missing = reference.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
    assert not any(missing)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    with torch.no_grad():
        tokens = reference((images - mean) / std)[-1]
    features, local_map = encoder(images)
    torch.testing.assert_close(features, tokens[:, 0])
    torch.testing.assert_close(local_map.flatten(2).mT, tokens[:, 1:])


def test_detectors_start_from_it(state):
    model = torch.nn.Module()
    model.backbone = MODELS.build(dict(type='MaskedVisionTransformer', arch=ARCH, img_size=16, patch_size=4))
    PretrainedBackbone(str(CHECKPOINT))(model)
    for name, value in model.backbone.state_dict().items():
        assert name == 'mask_token' or torch.equal(value, state[f'teacher.backbone.{name}']), name


def test_training_resumes_from_it(repository, tmp_path):
    write_images(tmp_path / 'images', 24, size=(40, 32), seed=5)
    (tmp_path / 'run').mkdir()
    shutil.copy(CHECKPOINT, tmp_path / 'run/iter_6.pth')
    config = make_config(repository)
    runner = launch(config, str(tmp_path / 'run'), resume=True, data=str(tmp_path / 'images'))
    assert runner.iter == 12
    found = runner.model.state_dict()
    for name, norm in NORMS.items():
        assert found[name].double().norm().item() == pytest.approx(norm, rel=1e-5), name
