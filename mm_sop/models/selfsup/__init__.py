"""Self-supervised algorithms, one file each."""

from mm_sop.models.selfsup.sop import SOP

__all__ = ['SOP']
