"""Assigners, which turn the encodings of a batch into targets."""

from mm_sop.models.assigners.sinkhorn_assigner import SinkhornAssigner

__all__ = ['SinkhornAssigner']
