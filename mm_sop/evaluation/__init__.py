"""Evaluation protocols."""

from mm_sop.evaluation.baselines import color_histogram, raw_pixels
from mm_sop.evaluation.features import extract_features, network_encoder
from mm_sop.evaluation.knn import KNNEvaluator
from mm_sop.evaluation.knn_hook import KNNHook
from mm_sop.evaluation.records import KNNRecords
from mm_sop.evaluation.refresh_pairs_hook import RefreshPairsHook

__all__ = [
    'KNNEvaluator',
    'KNNHook',
    'KNNRecords',
    'RefreshPairsHook',
    'color_histogram',
    'extract_features',
    'network_encoder',
    'raw_pixels',
]
