"""Checkpoints of other libraries, read by the names and shapes in them."""

from argparse import Namespace

import pytest
import timm
import torch
import torchvision
from mmpretrain.registry import MODELS
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mm_sop
from mm_sop.encoders.checkpoint import WeightsError
from mm_sop.encoders.formats import TABLES, from_format, read_format, to_format

IMAGES = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def make_vit(**options):
    options = dict(dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=0), **options)
    model = VisionTransformer(**options)
    return randomized(model)


def randomized(model):
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if 'running' in name else torch.randn_like(value) * 0.2)
    # MMPretrain's own `eval` returns None.
    model.eval()
    return model


def normalized():
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return (IMAGES - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def check(content, source, features, tmp_path, **options):
    """The encoder that is read gives the features of the model that was written."""
    torch.save(content, tmp_path / 'w.pth')
    encoder = mm_sop.load(tmp_path / 'w.pth', source=source, **options)
    found, local_map = encoder(IMAGES)
    torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-4)
    assert local_map.shape[:2] == found.shape
    return encoder


def test_timm(tmp_path):
    for options in (dict(), dict(init_values=0.5), dict(qkv_bias=False)):
        model = make_vit(**options)
        check(model.state_dict(), 'timm', model(normalized()), tmp_path)
    model = make_vit(num_heads=4)
    check(model.state_dict(), 'timm', model(normalized()), tmp_path, num_heads=4)
    model = randomized(timm.create_model('resnet18', num_classes=5))
    features = model.forward_features(normalized()).mean((2, 3))
    check(dict(state_dict=model.state_dict(), epoch=3), 'timm', features, tmp_path)


def test_torchvision(tmp_path):
    vit = torchvision.models.VisionTransformer(32, 8, num_layers=2, num_heads=1, hidden_dim=64, mlp_dim=96)
    for model, classifier in ((vit, 'heads'), (torchvision.models.resnet50(), 'fc')):
        state = dict(randomized(model).state_dict())
        setattr(model, classifier, nn.Identity())
        check(state, 'torchvision', model(normalized()), tmp_path)


def test_mmpretrain(tmp_path):
    backbone = dict(
        type='VisionTransformer', arch=dict(embed_dims=64, num_layers=2, num_heads=1, feedforward_channels=99)
    )
    model = randomized(MODELS.build(dict(backbone, img_size=32, patch_size=8)))
    state = {f'backbone.{name}': value for name, value in model.state_dict().items()}
    content = dict(state_dict=dict(state, **{'head.fc.weight': torch.zeros(3)}))
    check(content, 'mmpretrain', model(normalized())[-1], tmp_path)


def test_dinov2(tmp_path):
    # Block, LayerScale and names are those of timm's ViT; the mask embedding has two dimensions.
    model = make_vit(init_values=1.0)
    state = dict(model.state_dict(), mask_token=torch.zeros(1, 64))
    encoder = check(state, 'dinov2', model(normalized()), tmp_path)
    assert type(encoder.network).__name__ == 'MaskedVisionTransformer'
    training = dict(teacher={f'backbone.{name}': value for name, value in state.items()})
    training['teacher'] |= {'dino_head.mlp.0.weight': torch.zeros(2), 'ibot_head.mlp.0.weight': torch.zeros(2)}
    check(training, 'dinov2', model(normalized()), tmp_path)


def test_dinov2_with_blocks_in_chunks(tmp_path):
    model = make_vit(init_values=1.0)
    names = {f'blocks.{index}.': f'backbone.blocks.{index // 1}.{index}.' for index in range(2)}
    state = {}
    for name, value in model.state_dict().items():
        beginning = name[: len('blocks.0.')]
        state[names.get(beginning, f'backbone.{beginning}') + name[len(beginning) :]] = value
    assert 'backbone.blocks.1.1.norm1.weight' in state
    check(dict(teacher=state), 'dinov2', model(normalized()), tmp_path)


def test_dinov2_with_swiglu(tmp_path):
    gated = dict(type='MaskedVisionTransformer', img_size=32, patch_size=8, layer_scale_init_value=1.0)
    gated['arch'] = dict(embed_dims=64, num_layers=2, num_heads=1, feedforward_channels=96)
    model = randomized(MODELS.build(dict(gated, layer_cfgs=dict(ffn_type='swiglu_fused'))))
    state = to_format(model.state_dict(), 'dinov2')
    assert state['blocks.1.mlp.w12.weight'].shape == (128, 64)
    assert state['blocks.1.mlp.w3.weight'].shape == (64, 64)
    check(state, 'dinov2', model(normalized())[-1][:, 0], tmp_path)


def test_ibot(tmp_path):
    # Training checkpoints hold both networks and the arguments; the student has lost nothing to the wrapper's prefix.
    networks = {name: make_vit() for name in ('teacher', 'student')}
    content = dict(args=Namespace(arch='vit_small'), epoch=3)
    for name, prefix in dict(teacher='backbone.', student='module.backbone.').items():
        content[name] = {prefix + key: value for key, value in networks[name].state_dict().items()}
        content[name] |= {
            prefix + 'masked_embed': torch.zeros(1, 64),
            prefix.replace('backbone', 'head') + 'w': torch.zeros(2),
        }
    for name, model in networks.items():
        check(content, 'ibot', model(normalized()), tmp_path, network=name)
    scaled = {
        key.replace('ls1.gamma', 'gamma_1').replace('ls2.gamma', 'gamma_2'): value
        for key, value in make_vit(init_values=0.1).state_dict().items()
    }
    assert read_format(scaled, 'ibot')[0]['layer_scale_init_value'] == 1.0


@pytest.mark.parametrize('name', TABLES)
def test_tables_can_be_inverted(name):
    networks = [dict(type='ResNet', depth=50, stem_channels=4, base_channels=4)]
    if 'resnet' not in name:
        arch = dict(embed_dims=8, num_layers=12, num_heads=2, feedforward_channels=16)
        networks = [dict(type='VisionTransformer', arch=arch, layer_scale_init_value=float(name != 'huggingface_vit'))]
    for network in networks:
        state = MODELS.build(network).state_dict()
        renamed = to_format(state, name)
        assert len({*renamed}) == len(renamed)
        back = from_format(renamed, name)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], state[key]) for key in state)


def without(state, beginning):
    return {name: value for name, value in state.items() if not name.startswith(beginning)}


def test_what_cannot_be_read_is_refused():
    state = dict(make_vit().state_dict())
    cases = {
        'has no position embedding': without(state, 'pos_embed'),
        'has register tokens': dict(state, register_tokens=torch.zeros(1, 4, 64)),
        'positions for other tokens': dict(state, pos_embed=torch.zeros(1, 19, 64)),
        'names begin with blocks, cls_token': without(state, 'patch_embed'),
        'has no blocks.0.mlp.fc1.weight, the MLP of the first block': without(state, 'blocks.0.mlp'),
        'give num_heads': {**state, 'patch_embed.proj.weight': torch.zeros(96, 3, 8, 8)},
    }
    for message, content in cases.items():
        with pytest.raises(WeightsError, match=f'w.pth.*{message}'):
            read_format(content, 'dinov2', source='w.pth')
    with pytest.raises(WeightsError, match='does not name its patch embedding as the library'):
        read_format(state, 'mmpretrain', source='w.pth')
    small = MODELS.build(dict(type='ResNet_CIFAR', depth=18)).state_dict()
    with pytest.raises(WeightsError, match=r'\(2, 2, 2, 2\) blocks and a stem of \(64, 3, 3, 3\): give its config'):
        read_format(small, 'timm')
