"""Transforms of images and label maps."""

from mm_sop.datasets.transforms.augmentation import FastColorJitter, FastRandomResizedCrop
from mm_sop.datasets.transforms.block_mask_generator import BlockMaskGenerator
from mm_sop.datasets.transforms.evaluation import EvaluationTransform, FitWithin, TrimLongSide
from mm_sop.datasets.transforms.loading import LoadImage, UnreadableImageError
from mm_sop.datasets.transforms.multi_view import FastMultiView
from mm_sop.datasets.transforms.pair_views import ApplyToPair, PairMultiView
from mm_sop.datasets.transforms.perturb import Perturb
from mm_sop.datasets.transforms.segmentation import LoadSegmentationMap

__all__ = [
    'ApplyToPair',
    'BlockMaskGenerator',
    'EvaluationTransform',
    'FastColorJitter',
    'FastMultiView',
    'FastRandomResizedCrop',
    'FitWithin',
    'LoadImage',
    'LoadSegmentationMap',
    'PairMultiView',
    'Perturb',
    'TrimLongSide',
    'UnreadableImageError',
]
