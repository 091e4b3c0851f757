"""Baseline features without a network, which learned features are compared with."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, one_hot


def raw_pixels(images: Tensor, size: int = 16) -> Tensor:
    """Pixels of the downscaled image minus the mean color of the image.

    Args:
        images: uint8 images, (B, C, H, W).
        size: Side s of the downscaled image in pixels.

    Returns:
        Features in fp32, (B, C s s).
    """
    pixels = adaptive_avg_pool2d(images.float(), size)
    return (pixels - pixels.mean((2, 3), keepdim=True)).flatten(1)


def color_histogram(images: Tensor, levels: int = 4) -> Tensor:
    """Joint color histogram of the center half of the image, where the object usually is.

    Args:
        images: uint8 images, (B, C, H, W).
        levels: Bins for each channel, of equal width.

    Returns:
        Fraction of the pixels in every bin, fp32, (B, levels ** C).
    """
    height, width = images.shape[-2:]
    center = images[..., height // 4 : height - height // 4, width // 4 : width - width // 4]
    steps = center.long() * levels // 256
    powers = levels ** torch.arange(images.shape[1], device=images.device)
    bins = (steps * powers.view(-1, 1, 1)).sum(1).flatten(1)
    return one_hot(bins, levels ** images.shape[1]).float().mean(1)


def encode_without_network(batch: dict) -> dict[str, Tensor]:
    """Compute both baselines for a collated batch; see :func:`extract_features`."""
    images = batch['inputs']
    return dict(raw_pixels=raw_pixels(images), color_histogram=color_histogram(images))
