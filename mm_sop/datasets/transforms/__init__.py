"""Transforms of pictures and masks."""

from .block_mask_generator import BlockMaskGenerator
from .color import FastColorJitter
from .geometry import FastRandomResizedCrop
from .loading import LoadPicture, UnreadableImageError

__all__ = [
    'BlockMaskGenerator',
    'FastColorJitter',
    'FastRandomResizedCrop',
    'LoadPicture',
    'UnreadableImageError',
]
