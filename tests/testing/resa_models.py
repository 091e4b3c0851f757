"""Small ReSA models and batches for tests."""

import torch
from mmpretrain.registry import MODELS

import mm_sop  # noqa: F401

WIDTH = 16


def resa_config(predictor=True, head=None, **options):
    """Config of a two-layer vision transformer with patch size 4 on images of 16 pixels."""
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    neck = dict(type='MLPNeck', hid_channels=32, out_channels=WIDTH)
    head = dict(type='ReSAHead', **(head or {}))
    if predictor:
        head['predictor'] = dict(neck, in_channels=WIDTH, num_layers=2, pre_norm=True)
    config = dict(
        type='ReSA',
        backbone=dict(type='VisionTransformer', arch=arch, img_size=16, patch_size=4, out_type='raw'),
        neck=dict(neck, in_channels=32),
        head=head,
    )
    return {**config, **options}


def resnet_config(**options):
    """Config of a narrow ResNet-18 with BatchNorm."""
    neck = dict(type='NonLinearNeck', hid_channels=32, out_channels=WIDTH, with_bias=True, with_avg_pool=False)
    neck['norm_cfg'] = dict(type='BN1d')
    config = dict(
        type='ReSA',
        backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8, zero_init_residual=False),
        neck=dict(neck, in_channels=64, num_layers=3, with_last_bn_affine=False),
        head=dict(type='ReSAHead', predictor=dict(neck, in_channels=WIDTH, with_last_bn=False)),
    )
    return {**config, **options}


def plain_config(**options):
    """Config of the form without a teacher."""
    return resa_config(
        predictor=False, use_teacher=False, assignment_source='online', head=dict(symmetric=True), **options
    )


def build_resa(config, dtype=torch.float64):
    """A small model in training mode, with its teacher moved away from the student."""
    torch.manual_seed(0)
    model = MODELS.build(config).train()
    model.init_weights()
    if model.use_teacher:
        with torch.no_grad():
            for parameter in model.teacher.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype)


def batch(size=6, num_crops=1, seed=0, dtype=torch.float64):
    """Views, each image with a color of its own, alike enough for an assignment that is neither uniform nor sharp."""
    generator = torch.Generator().manual_seed(seed)
    colors = 1 + 0.4 * torch.randn(size, 3, 1, 1, generator=generator, dtype=dtype)
    sides = [16, 16] + [8] * num_crops
    return [colors + 0.4 * torch.randn(size, 3, side, side, generator=generator, dtype=dtype) for side in sides]
