"""Small Siamese models and batches for tests."""

import torch
from mmpretrain.registry import MODELS

import mm_sop  # noqa: F401

NUM_PROTOTYPES = 20

# Without BatchNorm, so that results do not depend on how a batch is divided.
VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32),
    img_size=16,
    patch_size=4,
    out_type='raw',
)
RESNET = dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4, zero_init_residual=False)


def mlp(in_channels, out_channels=8):
    """Projector or predictor without BatchNorm."""
    return dict(type='MLPNeck', in_channels=in_channels, hid_channels=16, out_channels=out_channels, num_layers=2)


def non_linear(in_channels, out_channels=8):
    """Projector or predictor as in the recipes."""
    return dict(
        type='NonLinearNeck',
        in_channels=in_channels,
        hid_channels=16,
        out_channels=out_channels,
        with_bias=True,
        with_last_bn=False,
        with_avg_pool=False,
        norm_cfg=dict(type='BN1d'),
    )


def dino_neck(in_channels, **options):
    return dict(
        type='DINONeck',
        in_channels=in_channels,
        hid_channels=16,
        bottleneck_channels=8,
        num_prototypes=NUM_PROTOTYPES,
        **options,
    )


def siamese_config(method, local=None, batch_norm=False, **options):
    """Config of ``'byol'``, ``'moco'`` or ``'dino'``; ``local`` has arguments of a local head with own networks."""
    width = 32 if batch_norm else 16
    network = non_linear if batch_norm else mlp
    projector, predictor = network(width), network(8)
    config = dict(backbone=dict(RESNET if batch_norm else VIT), neck=projector)
    if method == 'byol':
        config.update(type='COBYOL', head=dict(type='BYOLHead', predictor=predictor))
    elif method == 'moco':
        config.update(type='COMoCoV3', head=dict(type='InfoNCEHead', predictor=predictor, temperature=0.5))
    else:
        projector, predictor = dino_neck(width, norm_cfg=dict(type='BN1d') if batch_norm else None), None
        config.update(type='CODINO', neck=projector, head=dict(type='DINOHead', num_prototypes=NUM_PROTOTYPES))
    if local is not None:
        config['local_head'] = dict(type='LocalGlobalHead', projector=projector, predictor=predictor, **local)
    return {**config, **options}


def build_siamese(method, seed=0, **options):
    """A small model in training mode, with its teacher moved away from the student."""
    torch.manual_seed(seed)
    model = MODELS.build(siamese_config(method, **options))
    model.train()
    model.init_weights()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def views(size=4, num_crops=0, seed=0, side=16):
    generator = torch.Generator().manual_seed(seed)
    sides = [side, side] + [8] * num_crops
    return [torch.randn(size, 3, side, side, generator=generator) for side in sides]


def objective(losses):
    """What is minimized, by MMEngine's rule."""
    return sum(value for key, value in losses.items() if 'loss' in key)
