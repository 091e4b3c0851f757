"""A grid of classifiers against each of them alone."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mm_sop.engine.optimizers.lars import FastLARS
from mm_sop.evaluation.classification.linear_grid import SCHEDULES, AdamGrid, HeadSettings, LinearGrid, cosine_factor

HEADS = [
    HeadSettings(lr, decay, optimizer) for optimizer in ('sgd', 'lars') for decay in (0.0, 0.01) for lr in (0.05, 3.0)
]
ADAM_HEADS = [HeadSettings(lr, decay, 'adam') for decay in (0.0, 0.01) for lr in (0.01, 0.3)]
GRIDS = pytest.mark.parametrize('grid_type, heads', [(LinearGrid, HEADS), (AdamGrid, ADAM_HEADS)])


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def train_alone(settings, weight, batches, factors):
    """One classifier, trained with autograd and an optimizer."""
    classifier = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.zero_()
    kind = dict(sgd=torch.optim.SGD, lars=FastLARS, adam=torch.optim.Adam)[settings.optimizer]
    options = {} if settings.optimizer == 'adam' else dict(momentum=0.9)
    bias_decay = 0.0 if settings.optimizer == 'lars' else settings.weight_decay
    groups = [dict(params=[classifier.weight]), dict(params=[classifier.bias], weight_decay=bias_decay)]
    optimizer = kind(groups, lr=settings.lr, weight_decay=settings.weight_decay, **options)
    for (features, labels), factor in zip(batches, factors, strict=True):
        for group in optimizer.param_groups:
            group['lr'] = factor * settings.lr
        optimizer.zero_grad()
        cross_entropy(classifier(features), labels).backward()
        optimizer.step()
    return classifier


@GRIDS
def test_grid_equals_classifiers_trained_alone(double, grid_type, heads):
    torch.manual_seed(0)
    batches = [(torch.randn(6, 5), torch.randint(0, 3, (6,))) for _ in range(7)]
    factors = [cosine_factor(step, 7) for step in range(7)]
    grid = grid_type(5, 3, heads, generator=torch.Generator().manual_seed(1))
    initial = grid.weight[0].clone()
    for (features, labels), factor in zip(batches, factors, strict=True):
        grid.step(features, labels, factor)
    for index, settings in enumerate(heads):
        alone = train_alone(settings, initial, batches, factors)
        torch.testing.assert_close(grid.weight[index], alone.weight.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(grid.bias[index], alone.bias.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(grid.logits(batches[0][0])[:, index], alone(batches[0][0]).detach())


@GRIDS
def test_interrupted_training_is_resumed(grid_type, heads):
    torch.manual_seed(0)
    features, labels = torch.randn(8, 4), torch.randint(0, 3, (8,))
    straight, first, second = (grid_type(4, 3, heads, generator=torch.Generator().manual_seed(2)) for _ in range(3))
    for _ in range(4):
        straight.step(features, labels)
    for _ in range(2):
        first.step(features, labels)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.step(features, labels)
    assert torch.equal(second.weight, straight.weight)
    assert torch.equal(second.correct(features, labels), straight.correct(features, labels))


def test_correct_and_schedule():
    grid = LinearGrid(2, 2, [HeadSettings(0.1), HeadSettings(0.1)])
    grid.weight = torch.stack([torch.eye(2), -torch.eye(2)])
    assert grid.correct(torch.eye(2), torch.tensor([0, 1])).tolist() == [[True, False], [True, False]]
    assert [cosine_factor(step, 4) for step in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    assert cosine_factor(1, 3) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)


def test_schedules_of_the_papers():
    """In epochs of 7 steps: a tenth from epoch 60 and 80 of 100 on; from 0.01 to 1e-6 over 500 epochs."""
    for step in range(700):
        passed = (step >= 60 * 7) + (step >= 80 * 7)
        assert SCHEDULES['multistep'](step, 700) == pytest.approx([1, 0.1, 0.01][passed])
    for epoch in range(501):
        factor = SCHEDULES['exponential'](7 * epoch, 7 * 500)
        assert 0.01 * factor == pytest.approx(0.01 * ((1e-6 / 1e-2) ** (1 / 500)) ** epoch)


@pytest.mark.parametrize('heads', [[], [HeadSettings(0.1, 0.0, 'adam')]])
def test_bad_grids_are_refused(heads):
    with pytest.raises(ValueError, match="'sgd' or 'lars'"):
        LinearGrid(2, 2, heads)


def test_grid_of_adam():
    with pytest.raises(ValueError, match=r"'adam', got \['sgd'\]"):
        AdamGrid(2, 2, [HeadSettings(0.1), HeadSettings(0.1, 0.0, 'adam')])
