"""Transforms of pictures and masks."""

from .block_mask_generator import BlockMaskGenerator
from .color import FastColorJitter
from .geometry import FastRandomResizedCrop
from .loading import LoadPicture, UnreadableImageError
from .pair_views import ApplyToPair, PairMultiView

__all__ = [
    'ApplyToPair',
    'BlockMaskGenerator',
    'FastColorJitter',
    'FastRandomResizedCrop',
    'LoadPicture',
    'PairMultiView',
    'UnreadableImageError',
]
