"""Backbones."""

from mm_sop.models.backbones.frozen_vision_transformers import FixedPositionViT, FreezableVisionTransformer
from mm_sop.models.backbones.masked_vision_transformer import MaskedVisionTransformer
from mm_sop.models.backbones.padded_resnet import PaddedResNetCIFAR
from mm_sop.models.backbones.rf_resnet import RFResNet
from mm_sop.models.backbones.windowed_vision_transformer import WindowedVisionTransformer

__all__ = [
    'FixedPositionViT',
    'FreezableVisionTransformer',
    'MaskedVisionTransformer',
    'PaddedResNetCIFAR',
    'RFResNet',
    'WindowedVisionTransformer',
]
