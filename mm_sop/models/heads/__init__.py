"""Heads: each owns a loss."""

from mm_sop.models.heads.byol_head import BYOLHead
from mm_sop.models.heads.dino_head import DINOHead
from mm_sop.models.heads.info_nce_head import InfoNCEHead
from mm_sop.models.heads.local_global_head import Branch, LocalGlobalHead
from mm_sop.models.heads.resa_head import ReSAHead
from mm_sop.models.heads.segmentation_heads import FPNSegmentationHead, LinearSegmentationHead
from mm_sop.models.heads.siamese_head import SiameseHead
from mm_sop.models.heads.sop_head import SOPHead, SOPMIMHead
from mm_sop.models.heads.weighted_heads import WeightedContrastiveHead, WeightedLatentPredictHead

__all__ = [
    'BYOLHead',
    'Branch',
    'DINOHead',
    'FPNSegmentationHead',
    'InfoNCEHead',
    'LinearSegmentationHead',
    'LocalGlobalHead',
    'ReSAHead',
    'SOPHead',
    'SOPMIMHead',
    'SiameseHead',
    'WeightedContrastiveHead',
    'WeightedLatentPredictHead',
]
