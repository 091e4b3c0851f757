"""Backbones, necks, heads and algorithms, registered with MMPretrain."""

from mm_sop.models.assigners import SinkhornAssigner
from mm_sop.models.backbones import MaskedVisionTransformer, PaddedResNetCIFAR
from mm_sop.models.data_preprocessor import MultiViewDataPreprocessor
from mm_sop.models.heads import SOPHead, SOPMIMHead
from mm_sop.models.memory import Prototypes, PrototypeSampler, SupportEmbeddingBank
from mm_sop.models.necks import SOPNeck
from mm_sop.models.segmentors import SemanticSegmentor
from mm_sop.models.selfsup import SOP
from mm_sop.models.target_generators import MIMTargets, SOPMIMTargetGenerator

__all__ = [
    'SOP',
    'MIMTargets',
    'MaskedVisionTransformer',
    'MultiViewDataPreprocessor',
    'PaddedResNetCIFAR',
    'PrototypeSampler',
    'Prototypes',
    'SOPHead',
    'SOPMIMHead',
    'SOPMIMTargetGenerator',
    'SOPNeck',
    'SemanticSegmentor',
    'SinkhornAssigner',
    'SupportEmbeddingBank',
]
