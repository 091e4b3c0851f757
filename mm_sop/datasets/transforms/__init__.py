"""Transforms of pictures and masks."""

from .block_mask_generator import BlockMaskGenerator
from .color import FastColorJitter
from .fit_within import FitWithin
from .geometry import FastRandomResizedCrop
from .loading import LoadPicture, UnreadableImageError
from .pair_views import ApplyToPair, PairMultiView
from .perturb import Perturb
from .segmentation import LoadSegmentationMap
from .trim_long_side import TrimLongSide

__all__ = [
    'ApplyToPair',
    'BlockMaskGenerator',
    'FastColorJitter',
    'FastRandomResizedCrop',
    'FitWithin',
    'LoadPicture',
    'LoadSegmentationMap',
    'PairMultiView',
    'Perturb',
    'TrimLongSide',
    'UnreadableImageError',
]
