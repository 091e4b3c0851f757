"""Necks."""

from mm_sop.models.necks.dino_neck import DINONeck
from mm_sop.models.necks.mlp_neck import MLPNeck
from mm_sop.models.necks.sop_neck import SOPNeck

__all__ = ['DINONeck', 'MLPNeck', 'SOPNeck']
