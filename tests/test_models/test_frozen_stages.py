"""Frozen parts of networks: no gradient, no change of weights and statistics, before and after ``train()``."""

import re

import pytest
import torch
from mmpretrain.registry import MODELS
from testing.evaluation_encoders import make_encoder
from torch import nn

from mm_sop.encoders.encoder import Encoder, EncoderSpecification
from mm_sop.encoders.projector import FrozenProjector
from mm_sop.evaluation.classification.finetune import FinetuneSettings, build_classifier

ARCH = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)
TRANSFORMER = dict(arch=ARCH, img_size=32, patch_size=8, drop_rate=0.3, drop_path_rate=0.3)
CONV_STEM = dict(TRANSFORMER, stem='conv')
RESNET = dict(depth=18, stem_channels=4, base_channels=4, zero_init_residual=False)
MLP = dict(type='RFResNet', arch='rf29_r18', stem_channels=4, base_channels=4)
INPUTS = 'patch_embed|cls_token|pos_embed|mask_token|'
STEM = 'conv1|bn1|'

# Config, and what is frozen; the rest is trained.
CASES = {
    'vit': (dict(type='FreezableVisionTransformer', **TRANSFORMER, frozen_stages=2), INPUTS + r'layers\.[01]'),
    'vit, all': (dict(type='FreezableVisionTransformer', **TRANSFORMER, frozen_stages=3), '.'),
    'moco v3': (dict(type='FixedPositionViT', **TRANSFORMER, frozen_stages=2), INPUTS + r'layers\.[01]'),
    'moco v3, stem': (dict(type='FixedPositionViT', **TRANSFORMER, stop_grad_conv1=True), 'patch_embed|pos_embed'),
    'masked': (dict(type='MaskedVisionTransformer', **TRANSFORMER, frozen_stages=1), INPUTS + r'layers\.0'),
    'masked, conv': (dict(type='MaskedVisionTransformer', **CONV_STEM, frozen_stages=1), INPUTS + r'layers\.0'),
    'masked, all': (dict(type='MaskedVisionTransformer', **CONV_STEM, frozen_stages=3), '.'),
    'windowed, conv': (
        dict(type='WindowedVisionTransformer', **CONV_STEM, window_size=2, frozen_stages=2),
        INPUTS + r'layers\.[01]',
    ),
    'resnet, stem': (dict(type='ResNet', **RESNET, frozen_stages=0), STEM + 'none'),
    'resnet': (dict(type='ResNet', **RESNET, frozen_stages=2), STEM + 'layer[12]'),
    'resnet, deep stem': (dict(type='ResNetV1c', **RESNET, frozen_stages=1), 'stem|layer1'),
    'resnet, all': (dict(type='ResNet', **RESNET, frozen_stages=4), '.'),
    'detection resnet': (
        dict(type='mmdet.ResNet', depth=18, base_channels=4, frozen_stages=1, norm_eval=False),
        STEM + 'layer1',
    ),
    'cifar': (dict(type='ResNet_CIFAR', **RESNET, frozen_stages=1), STEM + 'layer1'),
    'padded': (dict(type='PaddedResNetCIFAR', **RESNET, frozen_stages=1), STEM + 'layer1'),
    'padded, norms': (dict(type='PaddedResNetCIFAR', **RESNET, norm_eval=True), r'.*(running|num_batches)'),
    'receptive field': (dict(MLP, frozen_stages=2), STEM + 'layer[12]'),
    'receptive field, all': (dict(MLP, frozen_stages=4), '.'),
    'receptive field, norms': (dict(MLP, norm_eval=True), r'.*(running|num_batches)'),
}


def step(network, forward):
    """One step with momentum and weight decay; names of parameters and buffers before and after which differ."""
    before = {name: value.detach().clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    loss = sum(output.square().mean() for output in forward(torch.randn(4, 3, 32, 32)))
    if loss.requires_grad:
        loss.backward()
    optimizer.step()
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def check_frozen(network, frozen, forward):
    """Only what is not frozen has gradients, and only its statistics follow the images."""
    network.zero_grad()
    changed = step(network, forward)
    assert {name for name in changed if re.match(frozen, name)} == set()
    with_gradient = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in network.named_parameters() if not re.match(frozen, name)}
    assert {name for name in network.state_dict() if 'running_' in name and not re.match(frozen, name)} <= changed


@pytest.mark.parametrize('case', CASES)
def test_frozen_parts_do_not_change(case):
    config, frozen = CASES[case]
    network = MODELS.build(config)
    # DistributedDataParallel wraps before weights are initialized, and waits for what is frozen later.
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    network.init_weights()
    assert trained == [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    check_frozen(network, frozen, network)
    network.eval()
    network.train()
    assert network.training
    check_frozen(network, frozen, network)
    nn.ModuleDict(dict(backbone=network)).train()
    check_frozen(network, frozen, network)
    if frozen == '.':
        images = torch.randn(2, 3, 32, 32)
        # Dropout is off as well.
        for first, second in zip(network(images), network(images), strict=True):
            torch.testing.assert_close(first, second)


@pytest.mark.parametrize('case', ['masked, conv', 'receptive field', 'padded'])
def test_frozen_encoders_of_segmentors(case):
    backbone = dict(CASES[case][0], frozen_stages=-1)
    if case == 'masked, conv':
        backbone['out_type'] = 'featmap'
    head = dict(type='LinearSegmentationHead', in_channels=[16 if case == 'masked, conv' else 32], num_classes=2)
    if case == 'receptive field':
        backbone['mlp'] = None
    model = MODELS.build(dict(type='SemanticSegmentor', backbone=backbone, head=head, frozen=True))
    for _ in range(2):
        check_frozen(model, 'backbone', lambda images: model(images, mode='tensor'))
        model.eval()
        model.train()


def test_encoders_of_evaluation_stay_frozen_in_a_model_that_trains():
    network = MODELS.build(dict(MLP, mlp=None))
    specification = EncoderSpecification(None, [120.0] * 3, [60.0] * 3, 32)
    encoder, projector = Encoder(network, specification), FrozenProjector(nn.BatchNorm1d(3))
    around = nn.ModuleList([encoder, make_encoder(), projector]).train()
    assert not any(module.training for part in around for module in part.modules())
    encoder.requires_grad_(True).train()
    assert network.bn1.training


@pytest.mark.parametrize('case', ['masked, conv', 'receptive field', 'resnet', 'moco v3', 'moco v3, stem'])
def test_fine_tuning_trains_what_pretraining_had_frozen(case):
    encoder = make_encoder()
    encoder.network = MODELS.build(CASES[case][0])
    classifier = build_classifier(encoder, 16 if 'm' in case else 32, 3, FinetuneSettings(mixup=0, cutmix=0)).train()
    fixed = {name for name, parameter in classifier.named_parameters() if not parameter.requires_grad}
    assert fixed == set()
    norms = [module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.training for norm in norms)
    assert getattr(encoder.network, 'frozen_stages', None) == CASES[case][0].get('frozen_stages', -1)


@pytest.mark.parametrize('kind', ['masked, conv', 'windowed, conv', 'receptive field'])
def test_more_frozen_stages_than_there_are_are_refused(kind):
    with pytest.raises(ValueError, match='frozen_stages=5: the (transformer has 3 blocks|network has 4 stages)'):
        MODELS.build(dict(CASES[kind][0], frozen_stages=5))
