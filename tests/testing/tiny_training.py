"""A tiny network that trains on labeled images in memory, for hooks that evaluate during training."""

import copy
import itertools
import logging
from types import SimpleNamespace

import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import nn

from . import labeled_images  # noqa: F401

_run_numbers = itertools.count()


@MODELS.register_module()
class TinyNetwork(BaseModel):
    """Dropout and BatchNorm everywhere, so that any disturbance shows in the weights and statistics."""

    def __init__(self, has_teacher=False):
        super().__init__(data_preprocessor=dict(type='SelfSupDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3))
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6), nn.Dropout(0.3))
        self.has_teacher = has_teacher
        if has_teacher:
            self.teacher = copy.deepcopy(self.backbone).requires_grad_(False)

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=self.backbone(inputs).square().mean() + torch.rand(()) * self.backbone[0].weight.mean())

    def extract_feat(self, images, network='student'):
        local = (self.teacher if network == 'teacher' else self.backbone)(images)
        return (local.mean((2, 3)), local) if self.has_teacher else (local,)


def tiny_images(count, seed, identities=range(6)):
    """Config of labeled images."""
    return dict(type='TinyImages', identities=list(identities), count=count, seed=seed)


def train_tiny(work_dir, hooks, images=10, has_teacher=False, max_epochs=1, **options):
    """Train with batches of two images."""
    runner = Runner(
        model=dict(type='TinyNetwork', has_teacher=has_teacher),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=tiny_images(images, 0),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=hooks,
        randomness=dict(seed=3),
        default_scope='mmpretrain',
        experiment_name=f'tiny_{next(_run_numbers)}',
        **options,
    )
    runner.train()
    return runner


def assert_not_affected(runner, reference):
    """The hooks of a run changed neither weights nor statistics nor modes."""
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, reference.model.state_dict()[name]), name
    assert all(module.training for module in runner.model.modules())


def idle_runner(**attributes):
    """What hooks need of a runner that has not started."""
    nothing = SimpleNamespace(add_scalars=lambda *args, **kwargs: None)
    common = dict(iter=0, epoch=0, seed=0, timestamp='now', visualizer=nothing, logger=logging.getLogger('test'))
    return SimpleNamespace(message_hub=MessageHub.get_instance('test'), **dict(common, **attributes))
