"""Target generators."""

from mm_sop.models.target_generators.sop_mim_target_generator import MIMTargets, SOPMIMTargetGenerator

__all__ = ['MIMTargets', 'SOPMIMTargetGenerator']
