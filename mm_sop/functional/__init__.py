"""The mathematics of MM-SOP as pure functions on tensors; nothing but torch is needed."""

from mm_sop.functional.dino_losses import dino_loss, dino_targets, update_center
from mm_sop.functional.ema import update_ema
from mm_sop.functional.info_nce import info_nce_loss
from mm_sop.functional.knn import knn_scores
from mm_sop.functional.koleo import koleo_loss
from mm_sop.functional.local_global import grid_cells, local_global_similarity, redundancy, uniform_cells
from mm_sop.functional.prototypes import prototype_log_probs
from mm_sop.functional.receptive_field import ReceptiveField, check_receptive_field, receptive_field
from mm_sop.functional.resa_losses import (
    assigned_keys_loss,
    soft_assignment_loss,
    symmetric_soft_assignment_loss,
)
from mm_sop.functional.schedules import cosine_schedule, linear_schedule
from mm_sop.functional.semantic_pairs import known_positives, mine_semantic_pairs
from mm_sop.functional.sinkhorn import sinkhorn
from mm_sop.functional.sop_losses import sop_cls_loss, sop_mim_loss
from mm_sop.functional.supports import sample_anchors, select_supports

__all__ = [
    'ReceptiveField',
    'assigned_keys_loss',
    'check_receptive_field',
    'cosine_schedule',
    'dino_loss',
    'dino_targets',
    'grid_cells',
    'info_nce_loss',
    'knn_scores',
    'known_positives',
    'koleo_loss',
    'linear_schedule',
    'local_global_similarity',
    'mine_semantic_pairs',
    'prototype_log_probs',
    'receptive_field',
    'redundancy',
    'sample_anchors',
    'select_supports',
    'sinkhorn',
    'soft_assignment_loss',
    'sop_cls_loss',
    'sop_mim_loss',
    'symmetric_soft_assignment_loss',
    'uniform_cells',
    'update_center',
    'update_ema',
]
