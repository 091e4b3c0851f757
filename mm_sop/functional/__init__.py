"""The mathematics of MM-SOP as pure functions on tensors; it needs torch alone."""

from mm_sop.functional.augmentation import augment
from mm_sop.functional.dino_losses import dino_loss, dino_targets, update_center
from mm_sop.functional.ema import update_ema
from mm_sop.functional.info_nce import info_nce_loss
from mm_sop.functional.knn import knn_scores
from mm_sop.functional.koleo import koleo_loss
from mm_sop.functional.label_propagation import propagate_labels
from mm_sop.functional.local_global import grid_cells, local_global_similarity, redundancy, uniform_cells
from mm_sop.functional.neighbors import nearest_neighbors
from mm_sop.functional.prototypes import prototype_log_probs
from mm_sop.functional.rank import alignment, effective_rank, lidar, rankme, uniformity
from mm_sop.functional.receptive_field import ReceptiveField, check_receptive_field, receptive_field
from mm_sop.functional.resa_losses import assigned_keys_loss, soft_assignment_loss, symmetric_soft_assignment_loss
from mm_sop.functional.retrieval import average_precision
from mm_sop.functional.schedules import cosine_schedule, linear_schedule
from mm_sop.functional.segmentation import contour_accuracy, region_similarity
from mm_sop.functional.semantic_iou import class_areas, segmentation_scores
from mm_sop.functional.semantic_pairs import known_positives, mine_semantic_pairs
from mm_sop.functional.silhouette import cosine_silhouette
from mm_sop.functional.sinkhorn import sinkhorn
from mm_sop.functional.sop_losses import sop_cls_loss, sop_mim_loss
from mm_sop.functional.supports import sample_anchors, sample_weighted, select_supports

__all__ = [
    'ReceptiveField',
    'alignment',
    'assigned_keys_loss',
    'augment',
    'average_precision',
    'check_receptive_field',
    'class_areas',
    'contour_accuracy',
    'cosine_schedule',
    'cosine_silhouette',
    'dino_loss',
    'dino_targets',
    'effective_rank',
    'grid_cells',
    'info_nce_loss',
    'knn_scores',
    'known_positives',
    'koleo_loss',
    'lidar',
    'linear_schedule',
    'local_global_similarity',
    'mine_semantic_pairs',
    'nearest_neighbors',
    'propagate_labels',
    'prototype_log_probs',
    'rankme',
    'receptive_field',
    'redundancy',
    'region_similarity',
    'sample_anchors',
    'sample_weighted',
    'segmentation_scores',
    'select_supports',
    'sinkhorn',
    'soft_assignment_loss',
    'sop_cls_loss',
    'sop_mim_loss',
    'symmetric_soft_assignment_loss',
    'uniform_cells',
    'uniformity',
    'update_center',
    'update_ema',
]
