"""Views of one size pass together through networks that treat every sample by itself."""

import pytest
import torch
from mmpretrain.registry import MODELS
from testing.resa_models import batch, build_resa, plain_config, resa_config
from testing.siamese_models import build_siamese, mlp, non_linear, objective, views
from torch import nn

from mm_sop.models.utils.coupling import couples_samples

LOCAL = dict(num_cells=4)
MODELS_BY_NAME = {
    'byol': lambda: build_siamese('byol', local=LOCAL),
    'byol_own_space': lambda: build_siamese('byol', local=dict(LOCAL, space='own')),
    'moco': lambda: build_siamese('moco', local=LOCAL),
    'dino': lambda: build_siamese('dino', local=LOCAL),
    'resa': lambda: build_resa(resa_config()),
    'resa_symmetric': lambda: build_resa(resa_config(head=dict(symmetric=True))),
    'co_resa': lambda: build_resa(
        resa_config(local_head=dict(type='LocalGlobalHead', projector=mlp(32, 16), predictor=mlp(16, 16), **LOCAL))
    ),
    'plain_resa': lambda: build_resa(plain_config()),
}


class Passes:
    """Counts the samples of every forward pass of some modules."""

    def __init__(self, **modules):
        self.sizes = {name: [] for name in modules}
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda _, inputs, name=name: self.sizes[name].append(self._count(inputs)))

    @staticmethod
    def _count(inputs):
        return len(inputs[0] if isinstance(inputs[0], torch.Tensor) else inputs[0][0])


def separate(model):
    """Make every view pass alone, as through networks with BatchNorm."""
    model.joint_views = False
    for network in (*model.student.values(), *model.teacher.values(), model.head, model.local_head):
        for module in () if network is None else network.modules():
            module.couples_samples = True
    return model


def losses_and_gradients(model, images):
    losses = model.loss(images)
    objective(losses).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('name', MODELS_BY_NAME)
def test_equals_the_passes_of_single_views(name, dtype):
    joint, alone = MODELS_BY_NAME[name]().to(dtype), separate(MODELS_BY_NAME[name]().to(dtype))
    images = batch(num_crops=0 if name == 'plain_resa' else 3, dtype=dtype)
    passes = Passes(backbone=joint.backbone), Passes(backbone=alone.backbone)
    losses, gradients = losses_and_gradients(joint, images)
    expected_losses, expected_gradients = losses_and_gradients(alone, images)
    sizes = [count.sizes['backbone'] for count in passes]
    assert sizes == ([[12], [6] * 2] if name == 'plain_resa' else [[12, 18], [6] * 5])
    assert losses.keys() == expected_losses.keys()
    for key, value in losses.items():
        torch.testing.assert_close(value, expected_losses[key], rtol=1e-6, atol=1e-6, msg=key)
    assert gradients.keys() == expected_gradients.keys()
    for key, value in gradients.items():
        scale = expected_gradients[key].abs().max().item()
        torch.testing.assert_close(value, expected_gradients[key], rtol=1e-6, atol=max(1e-6 * scale, 1e-7), msg=key)


def test_every_network_decides_for_itself():
    model = build_siamese('byol', neck=non_linear(16)).train()
    passes = Passes(
        backbone=model.backbone,
        neck=model.neck,
        predictor=model.head.predictor,
        teacher_backbone=model.teacher['backbone'],
        teacher_neck=model.teacher['neck'],
    )
    model.loss(views(num_crops=2))
    assert passes.sizes == dict(
        backbone=[8, 8], neck=[4] * 4, predictor=[16], teacher_backbone=[8], teacher_neck=[4, 4]
    )
    model = build_siamese('byol', batch_norm=True)
    passes = Passes(backbone=model.backbone, neck=model.neck, predictor=model.head.predictor)
    model.loss(views(side=32))
    assert passes.sizes == dict(backbone=[4, 4], neck=[4, 4], predictor=[4, 4])


def test_views_of_another_size_between_split_the_pass():
    model, images = build_siamese('moco'), views(num_crops=2)
    passes = Passes(backbone=model.backbone, neck=model.neck)
    model.loss([images[0], images[1], images[2], images[0], images[3]])
    assert passes.sizes == dict(backbone=[8, 4, 4, 4], neck=[20])


@pytest.mark.parametrize(
    ('network', 'expected'),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout(), nn.GroupNorm(2, 4)), False),
        (nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4))), True),
        (nn.BatchNorm2d(4, affine=False, track_running_stats=False), True),
        (nn.SyncBatchNorm(4), True),
        (nn.LazyBatchNorm1d(), True),
        (MODELS.build(dict(type='ResNet', depth=18, frozen_stages=4, norm_eval=True)), True),
    ],
)
def test_coupling_is_found_in_the_network(network, expected):
    assert couples_samples(network) == expected


def test_a_network_can_declare_its_coupling():
    network = nn.Sequential(nn.Linear(4, 4), nn.Identity())
    network[1].couples_samples = True
    assert couples_samples(network)
