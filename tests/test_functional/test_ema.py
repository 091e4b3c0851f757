"""Exponential moving average against a loop over elements."""

import pytest
import torch

from mm_sop.functional import update_ema

SHAPES = [(3, 4), (5,), (), (2, 0)]


def random_tensors(dtype=torch.float64):
    return [torch.randn(shape, dtype=dtype) for shape in SHAPES]


def test_equals_a_loop_over_steps_and_elements():
    targets = random_tensors()
    expected = [[float(x) for x in target.flatten()] for target in targets]
    for momentum in (0.996, 0.3, 0.999):
        sources = random_tensors()
        update_ema(targets, sources, momentum)
        for values, source in zip(expected, sources, strict=True):
            values[:] = [
                momentum * x + (1 - momentum) * float(y) for x, y in zip(values, source.flatten(), strict=True)
            ]
    for target, values in zip(targets, expected, strict=True):
        torch.testing.assert_close(target.flatten(), torch.tensor(values, dtype=torch.float64))


def test_momentum_one_keeps_and_zero_copies():
    targets, sources = random_tensors(torch.float32), random_tensors(torch.float32)
    before = [target.clone() for target in targets]
    update_ema(targets, sources, 1)
    assert all(map(torch.equal, targets, before))
    update_ema(targets, sources, 0)
    assert all(map(torch.equal, targets, sources))


def test_changes_parameters_in_place_and_leaves_the_sources():
    target, source = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    target.requires_grad_(False)
    addresses = [parameter.data_ptr() for parameter in target.parameters()]
    before = [parameter.clone() for parameter in source.parameters()]
    update_ema(list(target.parameters()), list(source.parameters()), 0.5)
    assert [parameter.data_ptr() for parameter in target.parameters()] == addresses
    assert all(map(torch.equal, source.parameters(), before))
    assert all(parameter.grad_fn is None for parameter in target.parameters())


def test_nothing_to_average_is_fine():
    update_ema([], [], 0.9)


@pytest.mark.parametrize('momentum', [-0.1, 1.1, float('nan')])
def test_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match=r'momentum must be in \[0, 1\]'):
        update_ema([torch.zeros(1)], [torch.ones(1)], momentum)


def test_different_numbers_of_tensors_are_refused():
    with pytest.raises(ValueError, match='2 target tensors do not match 1 source tensors'):
        update_ema([torch.zeros(1)] * 2, [torch.ones(1)], 0.9)
