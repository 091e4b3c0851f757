"""Heads: each owns a loss."""

from mm_sop.models.heads.sop_head import SOPHead, SOPMIMHead

__all__ = ['SOPHead', 'SOPMIMHead']
