"""Necks."""

from mm_sop.models.necks.sop_neck import SOPNeck

__all__ = ['SOPNeck']
