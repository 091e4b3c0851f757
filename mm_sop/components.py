"""Imports, and so registers, every component of MM-SOP."""

from mm_sop import compat

compat.define_torchvision_operators()
compat.leave_out_multimodal_models()
compat.announce_configs()

with compat.silenced_onedl():
    from mm_sop import datasets, encoders, engine, evaluation, models

__all__ = ['datasets', 'encoders', 'engine', 'evaluation', 'models']
