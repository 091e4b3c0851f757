"""Semantic segmentation."""

from mm_sop.models.segmentors.semantic_segmentor import SemanticSegmentor

__all__ = ['SemanticSegmentor']
