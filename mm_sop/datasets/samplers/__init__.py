"""Data samplers."""

from mm_sop.datasets.samplers.resumable_sampler import ResumableSampler

__all__ = ['ResumableSampler']
