import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mm_sop.functional.attacks import pgd_attack

WEIGHT = torch.randn(3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def classify(pixels):
    return pixels.flatten(1) @ WEIGHT.to(pixels.dtype).T


@pytest.fixture
def images():
    return torch.rand(5, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])


def slow_attack(pixels, labels, epsilon, step_size, num_steps, start):
    """Image by image and pixel by pixel, with the gradient of the softmax by hand."""
    result = (pixels + epsilon * start).clamp(0, 1)
    for image, original, label in zip(result, pixels, labels.tolist(), strict=True):
        for _ in range(num_steps):
            probabilities = (WEIGHT @ image.flatten()).softmax(0)
            probabilities[label] -= 1
            gradient = WEIGHT.T @ probabilities
            for index, value in enumerate(original.flatten().tolist()):
                moved = float(image.view(-1)[index]) + step_size * float(gradient[index].sign())
                image.view(-1)[index] = min(max(moved, value - epsilon, 0.0), value + epsilon, 1.0)
    return result


@pytest.mark.parametrize('num_steps', [1, 4])
def test_attack_equals_slow_one(images, num_steps):
    pixels, labels = images
    start = 2 * torch.rand_like(pixels) - 1
    expected = slow_attack(pixels, labels, 0.1, 0.03, num_steps, start)
    torch.testing.assert_close(pgd_attack(classify, pixels, labels, 0.1, 0.03, num_steps, start), expected)


def test_attack_stays_within_its_bounds_and_harms(images):
    pixels, labels = images
    pixels[0] = 0.0
    attacked = pgd_attack(classify, pixels, labels, 0.05, 0.02, 10)
    assert (attacked - pixels).abs().max() <= 0.05 + 1e-12
    assert attacked.min() >= 0 and attacked.max() <= 1
    before, after = (cross_entropy(classify(each), labels, reduction='none') for each in (pixels, attacked))
    assert (after > before).all()


def test_no_change_is_allowed(images):
    pixels, labels = images
    assert torch.equal(pgd_attack(classify, pixels, labels, 0.0, 0.0, 3, torch.ones_like(pixels)), pixels)


def test_attack_works_without_gradients_around_and_leaves_none():
    layer = nn.Linear(12, 3).requires_grad_(False)
    with torch.no_grad():
        attacked = pgd_attack(
            lambda each: layer(each.flatten(1)), torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 1]), 0.1, 0.1, 1
        )
    assert torch.allclose((attacked - 0.5).abs(), torch.tensor(0.1))
    assert not attacked.requires_grad and layer.weight.grad is None


@pytest.mark.parametrize('numbers', [(-0.1, 0.1, 1), (0.1, -0.1, 1), (0.1, 0.1, 0)])
def test_numbers_out_of_range(images, numbers):
    with pytest.raises(ValueError, match='expected >= 0, >= 0, >= 1'):
        pgd_attack(classify, *images, *numbers)
