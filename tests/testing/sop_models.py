"""Small SOP models and batches for tests."""

import numpy as np
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import mm_sop  # noqa: F401

WIDTH = 16


def prototypes(size=64, **options):
    """Config of a sampler with a small bank."""
    bank = dict(type='SupportEmbeddingBank', size=size, embed_dims=WIDTH)
    defaults = dict(num_anchors=8, num_supports=3, num_tasks=2, anchor_selection='all')
    return dict(type='PrototypeSampler', bank=bank, **{**defaults, **options})


def sop_config(mim=True, head=None, **options):
    """Config of a two-layer vision transformer with patch size 4 on images of 16 pixels."""
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    config = dict(
        type='SOP',
        backbone=dict(type='MaskedVisionTransformer', arch=arch, img_size=16, patch_size=4),
        neck=dict(type='SOPNeck', in_channels=32, hid_channels=32, out_channels=WIDTH),
        head=dict(type='SOPHead', prototypes=prototypes(), **(head or {})),
    )
    if mim:
        local = prototypes(num_supports=0, num_tasks=1)
        config['target_generator'] = dict(type='SOPMIMTargetGenerator', prototypes=local)
        config['mim_head'] = dict(type='SOPMIMHead')
    return {**config, **options}


def build_sop(**options):
    """A small model in training mode, with its teacher moved away from the student."""
    torch.manual_seed(0)
    model = MODELS.build(sop_config(**options)).train()
    model.init_weights()
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batch(size=4, num_crops=2, seed=0, mask_fraction=0.4):
    """Views and data samples; the mask of the first image is empty."""
    generator = np.random.default_rng(seed)
    sides = [16, 16] + [8] * num_crops
    views = [torch.tensor(generator.standard_normal((size, 3, side, side)), dtype=torch.float32) for side in sides]
    masks = generator.random((size, 2, 4, 4)) < mask_fraction
    masks[0] = False
    return views, [DataSample(metainfo=dict(mask=mask)) for mask in masks]


def objective(losses):
    """What is minimized, by MMEngine's rule."""
    return sum(value for key, value in losses.items() if 'loss' in key)
