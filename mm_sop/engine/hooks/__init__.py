"""Hooks of pretraining."""

from .bad_image_hook import BadImageHook
from .checkpoint_hook import PretrainCheckpointHook
from .collapse_guard_hook import CollapseGuardHook
from .runtime_info_hook import DeferredRuntimeInfoHook
from .teacher_hook import TeacherHook, TeacherTemperatureHook
from .throughput_hook import ThroughputHook

__all__ = [
    'BadImageHook',
    'CollapseGuardHook',
    'DeferredRuntimeInfoHook',
    'PretrainCheckpointHook',
    'TeacherHook',
    'TeacherTemperatureHook',
    'ThroughputHook',
]
