"""Backbones."""

from mm_sop.models.backbones.masked_vision_transformer import MaskedVisionTransformer
from mm_sop.models.backbones.rf_resnet import RFResNet

__all__ = ['MaskedVisionTransformer', 'RFResNet']
