"""The mathematics of MM-SOP as pure functions on tensors; nothing but torch is needed."""

from mm_sop.functional.ema import update_ema
from mm_sop.functional.knn import knn_scores
from mm_sop.functional.koleo import koleo_loss
from mm_sop.functional.prototypes import prototype_log_probs
from mm_sop.functional.schedules import cosine_schedule, linear_schedule
from mm_sop.functional.sop_losses import sop_cls_loss, sop_mim_loss
from mm_sop.functional.supports import sample_anchors, select_supports

__all__ = [
    'cosine_schedule',
    'knn_scores',
    'koleo_loss',
    'linear_schedule',
    'prototype_log_probs',
    'sample_anchors',
    'select_supports',
    'sop_cls_loss',
    'sop_mim_loss',
    'update_ema',
]
