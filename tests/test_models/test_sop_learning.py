"""Some hundred steps on a handful of noisy images: the whole method learns, frozen anchors collapse."""

import math

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from testing.sop_models import objective, prototypes, sop_config
from torch.nn.functional import interpolate, normalize

NUM_ANCHORS, STEPS, BATCH = 16, 300, 32


def noisy_images(seed, num_objects=16, repeats=4):
    """Smooth random images, every one several times under different noise."""
    generator = torch.Generator().manual_seed(seed)
    objects = interpolate(torch.randn(num_objects, 3, 4, 4, generator=generator), size=16, mode='bilinear')
    labels = torch.arange(num_objects).repeat_interleave(repeats)
    return objects[labels] + 0.5 * torch.randn(len(labels), 3, 16, 16, generator=generator), labels


def augment(images, generator):
    shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
    contrast = 0.8 + 0.4 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return contrast * torch.roll(images, shift, (2, 3)) + 0.7 * torch.randn(images.shape, generator=generator)


def nearest_neighbor_accuracy(model, images, labels):
    model.eval()
    with torch.no_grad():
        features = normalize(model.extract_feat(images)[0])
    model.train()
    similarity = (features @ features.T).fill_diagonal_(-2)
    return (labels[similarity.argmax(1)] == labels).float().mean().item()


def learning_model(seed, fix_anchors_after):
    options = dict(size=128, num_anchors=NUM_ANCHORS, num_tasks=1, fix_anchors_after=fix_anchors_after)
    config = sop_config()
    config['neck'].update(norm_cfg=dict(type='BN1d'), norm_output=True)
    config['head'].update(prototypes=prototypes(num_supports=2, **options), koleo_weight=0.05)
    config['target_generator']['prototypes'] = prototypes(num_supports=0, **options)
    torch.manual_seed(seed)
    model = MODELS.build(config).train()
    model.init_weights()
    return model


def train(model, images, precision):
    """The losses and diagnostics of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.04)
    generator, mask_generator = torch.Generator().manual_seed(1), np.random.default_rng(0)
    history = []
    for _ in range(STEPS):
        chosen = images[torch.randperm(len(images), generator=generator)[:BATCH]]
        views = [augment(chosen, generator), augment(chosen, generator)]
        samples = [DataSample(metainfo=dict(mask=mask)) for mask in mask_generator.random((BATCH, 2, 4, 4)) < 0.3]
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=precision == 'bf16'):
            losses = model.loss(views, samples)
        optimizer.zero_grad()
        objective(losses).backward()
        optimizer.step()
        model.update_teacher(0.98)
        history.append({name: float(value) for name, value in losses.items()})
    return history


@pytest.mark.learning
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_it_learns(precision, seed, expect):
    images, labels = noisy_images(seed)
    model = learning_model(seed, fix_anchors_after=None)
    untrained = nearest_neighbor_accuracy(model, images, labels)
    history = train(model, images, precision)
    assert all(math.isfinite(value) for step in history for value in step.values())
    trained = nearest_neighbor_accuracy(model, images, labels)
    gain = mean_at_end(history, 'support_cosine') - history[5]['support_cosine']
    expect('gain of accuracy', trained - untrained, above=0.05)
    expect('accuracy', trained, above=0.85)
    expect('gain of the support cosine', gain, above=0.1)
    expect('entropy of the targets', mean_at_end(history, 'target_entropy') / math.log(NUM_ANCHORS), below=0.7)


@pytest.mark.learning
def test_frozen_anchors_collapse_to_uniform_votes(seed, expect):
    history = train(learning_model(seed, fix_anchors_after=20), noisy_images(seed)[0], 'fp32')
    for name, bound in dict(target_entropy=0.75, loss_cls=0.8).items():
        expect(f'{name} of frozen anchors', mean_at_end(history, name) / math.log(NUM_ANCHORS), above=bound)


def mean_at_end(history, name):
    return sum(step[name] for step in history[-10:]) / 10
