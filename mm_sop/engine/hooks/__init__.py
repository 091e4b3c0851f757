"""Hooks of pretraining."""

from mm_sop.engine.hooks.bad_image_hook import BadImageHook
from mm_sop.engine.hooks.base import PretrainHook
from mm_sop.engine.hooks.checkpoint_hook import PretrainCheckpointHook
from mm_sop.engine.hooks.collapse_guard_hook import CollapseGuardHook
from mm_sop.engine.hooks.freeze_prototypes_hook import FreezePrototypesHook
from mm_sop.engine.hooks.knn_hook import KNNHook
from mm_sop.engine.hooks.online_evaluation_hook import OnlineEvaluationHook
from mm_sop.engine.hooks.refresh_pairs_hook import RefreshPairsHook
from mm_sop.engine.hooks.report_hook import ReportHook
from mm_sop.engine.hooks.runtime_info_hook import DeferredRuntimeInfoHook
from mm_sop.engine.hooks.segmentation_images_hook import SegmentationImagesHook
from mm_sop.engine.hooks.teacher_hook import TeacherHook, TeacherTemperatureHook
from mm_sop.engine.hooks.throughput_hook import ThroughputHook

__all__ = [
    'BadImageHook',
    'CollapseGuardHook',
    'DeferredRuntimeInfoHook',
    'FreezePrototypesHook',
    'KNNHook',
    'OnlineEvaluationHook',
    'PretrainCheckpointHook',
    'PretrainHook',
    'RefreshPairsHook',
    'ReportHook',
    'SegmentationImagesHook',
    'TeacherHook',
    'TeacherTemperatureHook',
    'ThroughputHook',
]
