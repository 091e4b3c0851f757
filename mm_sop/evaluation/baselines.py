"""Features that need no network; what a network has learnt is read against them."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, one_hot


def raw_pixels(images: Tensor, size: int = 16) -> Tensor:
    """Pixels of the picture, averaged down and freed of the picture's mean colour.

    Args:
        images: uint8 pictures, (B, C, H, W).
        size: Side s of the small picture in pixels.

    Returns:
        Features in fp32, (B, C s s).
    """
    pixels = adaptive_avg_pool2d(images.float(), size)
    return (pixels - pixels.mean((2, 3), keepdim=True)).flatten(1)


def color_histogram(images: Tensor, levels: int = 4) -> Tensor:
    """Joint histogram of the colours in the centre half of the picture, where its object usually is.

    Args:
        images: uint8 pictures, (B, C, H, W).
        levels: Equal steps into which each channel is divided.

    Returns:
        Share of the pixels in every bin, fp32, (B, levels ** C).
    """
    height, width = images.shape[-2:]
    centre = images[..., height // 4 : height - height // 4, width // 4 : width - width // 4]
    steps = centre.long() * levels // 256
    powers = levels ** torch.arange(images.shape[1], device=images.device)
    bins = (steps * powers.view(-1, 1, 1)).sum(1).flatten(1)
    return one_hot(bins, levels ** images.shape[1]).float().mean(1)


def encode_without_network(batch: dict) -> dict[str, Tensor]:
    """Both baselines of a collated batch, for :func:`extract_features`."""
    images = batch['inputs']
    return dict(raw_pixels=raw_pixels(images), color_histogram=color_histogram(images))
