"""A small encoder for tests of what is done with images and features."""

import torch
from torch import nn

from mm_sop.encoders.encoder import Encoder, EncoderSpecification


def small_encoder(image_size=16):
    """A convolution with random weights, always the same, that sees squares of a size."""
    torch.manual_seed(0)
    network = nn.Conv2d(3, 24, 4, stride=4)
    origin = dict(checkpoint='small.pth', checkpoint_sha256='0')
    specification = EncoderSpecification(None, (120.0,) * 3, (60.0,) * 3, image_size, origin=origin)
    return Encoder(network, specification)
