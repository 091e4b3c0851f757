import copy
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmpretrain.engine.optimizers import LARS
from mmpretrain.registry import OPTIMIZERS
from torch import nn

from mm_sop.engine.optimizers import FastLARS

CONFIGS = Path(__file__).parents[3] / 'configs'


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3, bias=False))


def groups(model, **options):
    """Biases and normalization apart, without decay."""
    parameters = list(model.parameters())
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim == 1]
    return [dict(params=matrices), dict(params=vectors, weight_decay=0.0, **options)]


def train(model, optimizer, num_steps=5):
    generator = torch.Generator().manual_seed(1)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group['lr'] = 0.3 / (1 + step)
        model(torch.randn(16, 6, generator=generator).to(next(model.parameters()))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


def test_equals_lars_of_mmpretrain():
    ours, theirs = network(), network()
    options = dict(lr=0.3, momentum=0.9, weight_decay=0.01, eta=0.02)
    expected = train(theirs, LARS(groups(theirs, lars_exclude=True), **options))
    optimizer = FastLARS(groups(ours), **options, lr_in_momentum=True, separate_norms=True)
    torch.testing.assert_close(train(ours, optimizer), expected)


def slow_step(parameters, velocities, lr, decay, eta, lr_in_momentum, separate_norms, clip):
    """One step as the authors' codes write it, number by number; returns whether ratios were clipped."""
    clipped = set()
    for name, w in parameters.items():
        weights, grads = w.flatten().tolist(), w.grad.flatten().tolist()
        adapted = w.ndim > 1
        updates = [g + (decay if adapted else 0.0) * x for g, x in zip(grads, weights, strict=True)]
        trust = 1.0
        if adapted:
            weight_norm = math.hypot(*weights)
            below = math.hypot(*updates)
            if separate_norms:
                below = math.hypot(*grads) + decay * weight_norm + 1e-8
            trust = eta * weight_norm / below
            clipped.add(trust > lr)
            trust = min(trust / lr, 1) if clip else trust
        old = velocities.get(name, [0.0] * len(weights))
        scale = trust * lr if lr_in_momentum else trust
        velocities[name] = [0.9 * v + scale * u for v, u in zip(old, updates, strict=True)]
        rate = 1.0 if lr_in_momentum else lr
        moved = [x - rate * v for x, v in zip(weights, velocities[name], strict=True)]
        w.data.copy_(torch.tensor(moved, dtype=w.dtype).view_as(w))
        w.grad = None
    return clipped


@pytest.mark.parametrize(
    'options',
    [
        dict(lr_in_momentum=False, separate_norms=False, clip=False),
        dict(lr_in_momentum=False, separate_norms=True, clip=True),
        dict(lr_in_momentum=True, separate_norms=False, clip=False),
    ],
    ids=['byol_mocov3_dino', 'solo-learn', 'simclr'],
)
def test_equals_the_published_codes_while_the_rate_changes(options):
    model = network().double()
    twin = copy.deepcopy(model)
    common = dict(lr=0.3, weight_decay=0.01, eta=0.02)
    named = {name: value for name, value in options.items() if value}
    result = train(model, FastLARS(groups(model), **common, **named), 6)
    generator = torch.Generator().manual_seed(1)
    velocities, clipped = {}, set()
    for step in range(6):
        twin(torch.randn(16, 6, generator=generator).double()).square().mean().backward()
        settings = dict(lr=0.3 / (1 + step), decay=0.01, eta=0.02, **options)
        clipped |= slow_step(dict(twin.named_parameters()), velocities, **settings)
    assert clipped == {True, False}, 'clipping needs both cases'
    expected = [w.detach() for w in twin.parameters()]
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ('schedule', 'form'),
    [
        ('siamese_lars', (False, False, False)),
        ('dino_lars', (False, False, False)),
        ('siamese_lars_small', (False, True, True)),
        ('simclr_lars', (True, True, False)),
    ],
)
def test_recipes_name_the_form_of_their_code(schedule, form):
    config = Config.fromfile(CONFIGS / f'_base_/schedules/{schedule}.py').optim_wrapper.optimizer
    (group,) = OPTIMIZERS.build(dict(config, params=[nn.Parameter(torch.ones(2, 2))])).param_groups
    assert (group['lr_in_momentum'], group['separate_norms'], group['clip']) == form


def test_continues_the_state_of_mmpretrains_lars():
    theirs = network()
    options = dict(lr=0.3, momentum=0.9, weight_decay=0.01)
    optimizer = LARS(groups(theirs, lars_exclude=True), **options)
    train(theirs, optimizer, 2)
    ours = copy.deepcopy(theirs)
    successor = FastLARS(groups(ours), lr=0.3)
    successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.testing.assert_close(train(ours, successor), train(theirs, optimizer))


def test_older_checkpoints_continue_in_their_form():
    """Their velocities contain the learning rate, which their groups do not say."""
    options = dict(lr=0.3, weight_decay=0.01)
    straight = network()
    optimizer = FastLARS(groups(straight), **options, lr_in_momentum=True, separate_norms=True)
    train(straight, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    for group in state['param_groups']:
        del group['lr_in_momentum'], group['separate_norms']
    resumed = copy.deepcopy(straight)
    other = FastLARS(groups(resumed), **options)
    other.load_state_dict(state)
    for first, second in zip(train(straight, optimizer), train(resumed, other), strict=True):
        assert torch.equal(first, second)


def test_clipping_never_lengthens_a_step():
    weight = nn.Parameter(torch.full((2, 2), 10.0))
    for gradient, expected in ((1e-3, 0.1 * 1e-3), (1e3, 0.001 * 10.0)):
        optimizer = FastLARS([weight], lr=0.1, momentum=0.0, eta=0.001, clip=True)
        before = weight.detach().clone()
        weight.grad = torch.full((2, 2), gradient)
        optimizer.step()
        torch.testing.assert_close(before - weight.detach(), torch.full((2, 2), expected), rtol=1e-3, atol=1e-6)


def test_tensors_of_zeros_use_the_learning_rate():
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    FastLARS([weight], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.1))


def test_parameters_without_gradient_stay_and_states_resume():
    model = network()
    model[2].requires_grad_(False)
    optimizer = FastLARS(groups(model), lr=0.3, weight_decay=0.01)
    train(model, optimizer, 2)
    assert torch.equal(model[2].weight, network()[2].weight)
    twin = copy.deepcopy(model)
    resumed = FastLARS(groups(twin), lr=0.3, weight_decay=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for first, second in zip(train(model, optimizer), train(twin, resumed), strict=True):
        assert torch.equal(first, second)


def test_refuses_negative_arguments():
    with pytest.raises(ValueError, match='must not be negative'):
        FastLARS(network().parameters(), lr=-0.1)
