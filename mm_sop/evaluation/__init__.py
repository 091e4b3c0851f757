"""Evaluation: metrics, k-NN results of runs, and protocols (registered by :mod:`mm_sop.evaluation.protocols`)."""

from mm_sop.evaluation.classification.knn_evaluator import KNNEvaluator
from mm_sop.evaluation.classification.knn_records import KNNRecords
from mm_sop.evaluation.classification.metrics import KNNMetric, RankMetric
from mm_sop.evaluation.dense.segmentation import SegmentationMetric
from mm_sop.evaluation.features.extraction import color_histogram, extract_features, network_encoder, raw_pixels

__all__ = [
    'KNNEvaluator',
    'KNNMetric',
    'KNNRecords',
    'RankMetric',
    'SegmentationMetric',
    'color_histogram',
    'extract_features',
    'network_encoder',
    'raw_pixels',
]
