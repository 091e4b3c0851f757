import copy

import pytest
import torch
from mmpretrain.engine.optimizers import LARS
from torch import nn

from mm_sop.engine.optimizers import FastLARS


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3, bias=False))


def groups(model, **options):
    """Biases and normalisation apart, without decay."""
    parameters = list(model.parameters())
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim == 1]
    return [dict(params=matrices), dict(params=vectors, weight_decay=0.0, **options)]


def train(model, optimizer, num_steps=5):
    generator = torch.Generator().manual_seed(1)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group['lr'] = 0.3 / (1 + step)
        model(torch.randn(16, 6, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


def test_equals_lars_of_mmpretrain():
    ours, theirs = network(), network()
    options = dict(lr=0.3, momentum=0.9, weight_decay=0.01, eta=0.02)
    expected = train(theirs, LARS(groups(theirs, lars_exclude=True), **options))
    torch.testing.assert_close(train(ours, FastLARS(groups(ours), **options)), expected)


def test_clipped_steps_equal_a_loop():
    model = network()
    twin = copy.deepcopy(model)
    optimizer = FastLARS(groups(model), lr=0.3, momentum=0.9, weight_decay=0.01, eta=0.02, clip=True)
    generator = torch.Generator().manual_seed(1)
    velocities, clipped = {}, set()
    for step in range(4):
        lr = 0.3 / (1 + step)
        twin(torch.randn(16, 6, generator=generator)).square().mean().backward()
        for name, w in twin.named_parameters():
            decay = 0.01 if w.ndim > 1 else 0.0
            trust = 0.02 * w.norm() / (w.grad.norm() + decay * w.norm() + 1e-8)
            rate = min(trust.item(), lr) if w.ndim > 1 else lr
            clipped |= {trust.item() > lr} if w.ndim > 1 else set()
            velocities[name] = 0.9 * velocities.get(name, 0) + rate * (w.grad + decay * w)
        with torch.no_grad():
            for name, w in twin.named_parameters():
                w -= velocities[name]
                w.grad = None
    assert clipped == {True, False}
    torch.testing.assert_close(train(model, optimizer, 4), [w.detach() for w in twin.parameters()])


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
