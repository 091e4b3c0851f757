"""Learning rates by depth."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from torch import nn

from mm_sop.engine.optimizers.constructors import find_layer_depth
from mm_sop.models.backbones import WindowedVisionTransformer

WRAPPER = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05),
    paramwise_cfg=dict(layer_decay_rate=0.5, flat_decay_mult=0.0, custom_keys=dict(pos_embed=dict(decay_mult=0.0))),
)


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.roi_head = nn.Module()
        self.roi_head.shared_head = nn.ModuleDict(dict(layer4=nn.Sequential(nn.Linear(2, 2))))
        self.roi_head.fc = nn.Linear(2, 2)


def settings_of(model):
    """Learning rate and weight decay by name, and the number of groups."""
    groups = build_optim_wrapper(model, WRAPPER).optimizer.param_groups
    found = {id(parameter): (group['lr'], group['weight_decay']) for group in groups for parameter in group['params']}
    assert sum(len(group['params']) for group in groups) == len(found)
    return {
        name: found[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in found
    }, groups


def test_vision_transformer():
    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)
    model = Detector(WindowedVisionTransformer(arch=arch, img_size=32, patch_size=8, frozen_stages=0))
    model.backbone.cls_token.requires_grad_(False)
    settings, groups = settings_of(model)
    assert 'backbone.cls_token' not in settings
    assert settings['backbone.pos_embed'] == (0.0125, 0.0)
    assert settings['backbone.patch_embed.projection.weight'] == (0.0125, 0.05)
    assert settings['backbone.layers.0.attn.qkv.weight'] == (0.025, 0.05)
    assert settings['backbone.layers.1.attn.qkv.bias'] == (0.05, 0.0)
    assert settings['backbone.ln1.weight'] == (0.1, 0.0)
    assert settings['roi_head.fc.weight'] == (0.1, 0.05)
    # Four depths, with and without weight decay
    assert len(groups) == 8


def test_resnet_by_stage():
    model = Detector(MODELS.build(dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)))
    settings, groups = settings_of(model)
    rates = [settings[f'backbone.layer{stage}.0.conv1.weight'][0] for stage in (1, 2, 3, 4)]
    assert rates == [0.1 / 16, 0.1 / 8, 0.1 / 4, 0.1 / 2]
    assert settings['backbone.conv1.weight'] == (0.1 / 32, 0.05)
    assert settings['roi_head.shared_head.layer4.0.weight'] == (0.1 / 2, 0.05)
    assert settings['roi_head.fc.bias'] == (0.1, 0.0)
    assert len(groups) == 12


def test_unknown_backbone():
    with pytest.raises(ValueError, match='not Linear: give it a method get_layer_depth'):
        find_layer_depth(Detector(torch.nn.Linear(1, 1)))
