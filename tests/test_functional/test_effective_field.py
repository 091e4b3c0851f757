import math

import pytest
import torch
from torch import nn

from mm_sop.functional.effective_field import input_gradients, mass_radius, median_position


def test_gradients_of_one_convolution_are_its_kernel():
    layer = nn.Conv2d(2, 1, 3, padding=1, bias=False).double()
    images = torch.rand(3, 2, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        gradients = input_gradients(layer, images)
    expected = torch.zeros(7, 7, dtype=torch.float64)
    expected[2:5, 2:5] = layer.weight[0].detach().abs().sum(0)
    torch.testing.assert_close(gradients, expected.expand(3, 7, 7))


def test_gradients_equal_finite_differences():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1)).double()
    images = torch.rand(1, 1, 6, 6, dtype=torch.float64)
    found, step = input_gradients(network, images)[0], 1e-6
    for row in range(6):
        for column in range(6):
            lengths = []
            for sign in (-1, 1):
                moved = images.clone()
                moved[0, 0, row, column] += sign * step
                lengths.append(float(network(moved)[0, :, 1, 1].detach().norm()))
            assert float(found[row, column]) == pytest.approx(abs(lengths[1] - lengths[0]) / (2 * step), abs=1e-7)


def test_median_by_hand():
    mass = torch.zeros(6, 8)
    mass[2:5, 1] = 1.0
    assert median_position(mass) == pytest.approx((3.0, 1.0))
    mass[3, 7] = 9.0
    assert median_position(mass) == pytest.approx((2.5 + 5 / 10, 6.5 + 3 / 9))


def test_field_of_a_padded_strided_network_is_found():
    layers = [nn.Conv2d(1, 1, 3, stride=2, padding=1, bias=False) for _ in range(3)]
    for layer in layers:
        nn.init.constant_(layer.weight, 0.1)
    field = input_gradients(nn.Sequential(*layers), torch.rand(1, 1, 48, 48))[0]
    assert field.nonzero().amin(0).tolist() == [17, 17] and field.nonzero().amax(0).tolist() == [31, 31]
    assert median_position(field) == pytest.approx((24, 24))


def test_radius_by_hand():
    mass = torch.zeros(9, 9)
    mass[4, 4], mass[4, 6], mass[1, 4], mass[8, 8] = 5, 4, 0.5, 0.5
    for fraction, radius in ((0.3, 0), (0.5, 0), (0.51, 2), (0.9, 2), (0.95, 3), (1.0, math.sqrt(32))):
        assert mass_radius(mass, (4, 4), fraction) == pytest.approx(radius)


def test_radius_of_an_even_disc():
    rows, columns = torch.meshgrid(torch.arange(201.0), torch.arange(201.0), indexing='ij')
    mass = (torch.hypot(rows - 100, columns - 100) <= 80).float()
    assert mass_radius(mass, (100, 100), 0.5) == pytest.approx(80 * math.sqrt(0.5), abs=0.5)
    assert mass_radius(mass, (100, 100), 0.9) == pytest.approx(80 * math.sqrt(0.9), abs=0.5)
