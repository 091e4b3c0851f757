"""Whether the algorithms learn, on shapes in front of textures."""

import pytest
import torch
from mmpretrain.registry import MODELS
from testing.siamese_models import objective, siamese_config

from mm_sop.functional import redundancy

SIDE = 32
BACKBONE = dict(
    type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4, strides=(1, 2, 2, 1), zero_init_residual=False
)


def images(size, generator):
    """Squares, discs, crosses and rings of any color on noise, and what they are."""
    kinds = torch.randint(4, (size,), generator=generator)
    axis = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(axis, axis, indexing='ij')
    offset = 0.3 * (2 * torch.rand(size, 2, 1, 1, generator=generator) - 1)
    x, y = x - offset[:, 0], y - offset[:, 1]
    radius = (x**2 + y**2).sqrt()
    square, cross = torch.maximum(x.abs(), y.abs()) < 0.5, torch.minimum(x.abs(), y.abs()) < 0.15
    disc, ring = radius < 0.55, (radius - 0.5).abs() < 0.12
    shapes = torch.stack([square, disc, cross, ring], dim=1)
    shape = shapes[torch.arange(size), kinds][:, None].float()
    color = torch.randn(size, 3, 1, 1, generator=generator)
    return shape * color + 0.5 * torch.randn(size, 3, SIDE, SIDE, generator=generator), kinds


def view(images, generator):
    """Shifted, perhaps mirrored, with other noise."""
    shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
    moved = images.roll(shift, (2, 3)) + 0.2 * torch.randn(images.shape, generator=generator)
    return moved.flip(3) if torch.rand((), generator=generator) < 0.5 else moved


def learn(method, local, seed, num_steps=45):
    """Losses, and mean redundancy of the student's maps on new images, before and after."""
    torch.manual_seed(seed)
    model = MODELS.build(siamese_config(method, local=local, batch_norm=True, backbone=BACKBONE))
    model.train()
    model.init_weights()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    test_images, _ = images(64, torch.Generator().manual_seed(1))
    measured, losses = [mean_redundancy(model, test_images)], []
    for _ in range(num_steps):
        batch, _ = images(32, generator)
        values = model.loss([view(batch, generator) for _ in range(2)])
        loss = objective(values)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.95)
        losses.append(loss.item())
    measured.append(mean_redundancy(model, test_images))
    return losses, measured, values


@torch.no_grad()
def mean_redundancy(model, images):
    return redundancy(model.backbone(images)[-1]).mean().item()


@pytest.mark.learning
@pytest.mark.parametrize('method', ['byol', 'dino'])
def test_loss_falls_without_collapse(method, seed, expect):
    losses, _, values = learn(method, dict(weight=0.3), seed)
    expect('drop of the loss', drop(losses), above=dict(byol=1.0, dino=0.7)[method])
    expect('cosine of the keys', values['key_cosine'].item(), below=0.9)


@pytest.mark.learning
def test_local_term_makes_patches_more_alike_than_the_base_does(seed, expect):
    (base_losses, base, _), (losses, ours, _) = learn('moco', None, seed), learn('moco', dict(weight=0.5), seed)
    expect('drop of the loss', min(drop(base_losses), drop(losses)), above=0.6)
    assert base[0] == ours[0]
    expect('gain of redundancy', ours[1] - base[1], above=0.0)


def drop(losses):
    return sum(losses[:5]) / 5 - sum(losses[-5:]) / 5
