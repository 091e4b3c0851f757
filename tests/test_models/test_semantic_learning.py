"""Pairs of one class help and random pairs hurt: small images of a faint class pattern before two backgrounds."""

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

from mm_sop.functional import knn_scores

NUM_CLASSES, SIDE, COUNT = 4, 6, 256


@MODELS.register_module()
class SmallPerceptron(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3 * SIDE**2, 64), nn.ReLU(), nn.Unflatten(1, (64, 1, 1)))

    def forward(self, images):
        return (super().forward(images),)


def make_images(seed, count=COUNT):
    """Images, (n, 3, SIDE, SIDE), and their classes."""
    patterns = torch.randn(NUM_CLASSES + 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % NUM_CLASSES
    backgrounds = torch.randint(2, (count,), generator=generator)
    own = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return 0.25 * patterns[labels] + 2 * patterns[NUM_CLASSES + backgrounds] + own, labels


def make_pairs(labels, kind):
    """Two pairs for each image, drawn among all images or inside of the classes."""
    generator = np.random.default_rng(0)
    keys = labels.numpy() if kind == 'oracle' else np.zeros(COUNT)
    orders = [np.argsort(keys + generator.random(COUNT) / 2) for _ in range(4)]
    return np.concatenate([order.reshape(-1, 2) for order in orders])


def accuracy_after_training(kind, seed):
    """k-NN accuracy of the backbone in classifying new images."""
    torch.manual_seed(seed)
    head = dict(type='WeightedContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.2)
    neck = dict(type='MoCoV2Neck', in_channels=64, hid_channels=64, out_channels=32)
    model = MODELS.build(dict(type='SemanticSimCLR', backbone=dict(type='SmallPerceptron'), neck=neck, head=head))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, labels = make_images(2 * seed)
    entries = torch.arange(COUNT)[:, None].expand(-1, 2)
    if kind != 'none':
        entries = torch.cat([entries, torch.from_numpy(make_pairs(labels, kind))])
    for _ in range(400):
        chosen = entries[torch.randint(len(entries), (64,))].T
        views = [images[ids] + 0.5 * torch.randn(64, 3, SIDE, SIDE) for ids in chosen]
        loss = model.loss(views, [DataSample()] * 64)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tests, answers = make_images(2 * seed + 1, 2048)
    with torch.no_grad():
        votes = knn_scores(model.backbone(images)[0].flatten(1), labels, model.backbone(tests)[0].flatten(1), 10)
    return (votes[10].argmax(1) == answers).double().mean().item()


@pytest.mark.learning
def test_true_pairs_help_and_random_pairs_hurt(seed, expect):
    kinds, seeds = ('none', 'oracle', 'random'), (2 * seed + 1, 2 * seed + 2)
    accuracy = {kind: np.mean([accuracy_after_training(kind, each) for each in seeds]) for kind in kinds}
    # Over six seeds: 0.63 to 0.68 without pairs, 0.74 to 0.78 with true and 0.47 to 0.56 with random ones.
    expect('gain of true pairs', accuracy['oracle'] - accuracy['none'], above=0.03)
    expect('loss by random pairs', accuracy['none'] - accuracy['random'], above=0.03)
