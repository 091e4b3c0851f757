"""Backbones."""

from mm_sop.models.backbones.masked_vision_transformer import MaskedVisionTransformer

__all__ = ['MaskedVisionTransformer']
