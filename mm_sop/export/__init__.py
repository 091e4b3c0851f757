"""Encoders for other libraries."""

# In the order in which they are listed.
from mm_sop.export import openmmlab, model_zoos, portable  # noqa: F401, I001
from mm_sop.export.export import export
from mm_sop.export.target import TARGETS, ExportError

__all__ = ['TARGETS', 'ExportError', 'export']
