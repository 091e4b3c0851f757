"""Evaluation protocols."""

from mm_sop.evaluation.baselines import color_histogram, raw_pixels
from mm_sop.evaluation.feature_metrics import KNNMetric, RankMetric
from mm_sop.evaluation.features import extract_features, network_encoder
from mm_sop.evaluation.knn import KNNEvaluator
from mm_sop.evaluation.knn_hook import KNNHook
from mm_sop.evaluation.online_hook import OnlineEvaluationHook
from mm_sop.evaluation.records import KNNRecords
from mm_sop.evaluation.refresh_pairs_hook import RefreshPairsHook
from mm_sop.evaluation.segmentation_metric import SegmentationMetric

__all__ = [
    'KNNEvaluator',
    'KNNHook',
    'KNNMetric',
    'KNNRecords',
    'OnlineEvaluationHook',
    'RankMetric',
    'RefreshPairsHook',
    'SegmentationMetric',
    'color_histogram',
    'extract_features',
    'network_encoder',
    'raw_pixels',
]
