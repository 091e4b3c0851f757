"""Hooks of pretraining."""

from .bad_image_hook import BadImageHook
from .checkpoint_hook import PretrainCheckpointHook
from .collapse_guard_hook import CollapseGuardHook
from .freeze_prototypes_hook import FreezePrototypesHook
from .runtime_info_hook import DeferredRuntimeInfoHook
from .teacher_hook import TeacherHook, TeacherTemperatureHook
from .throughput_hook import ThroughputHook

__all__ = [
    'BadImageHook',
    'CollapseGuardHook',
    'DeferredRuntimeInfoHook',
    'FreezePrototypesHook',
    'PretrainCheckpointHook',
    'TeacherHook',
    'TeacherTemperatureHook',
    'ThroughputHook',
]
