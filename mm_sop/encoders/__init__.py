"""Reads checkpoints and builds the encoders in them."""

from mm_sop.encoders.pretrained import PretrainedBackbone

__all__ = ['PretrainedBackbone']
