"""Evaluation protocols; importing this module registers them."""

from mm_sop.evaluation.classification.finetune import FinetuneProtocol
from mm_sop.evaluation.classification.knn import KNNProtocol
from mm_sop.evaluation.classification.linear import LinearProtocol
from mm_sop.evaluation.classification.logistic import LogisticProtocol
from mm_sop.evaluation.classification.transfer import TransferProtocol
from mm_sop.evaluation.dense.video import VideoSegmentationProtocol
from mm_sop.evaluation.representation.clustering import ClusteringProtocol
from mm_sop.evaluation.representation.locality import LocalityProtocol
from mm_sop.evaluation.representation.rank import RankProtocol
from mm_sop.evaluation.retrieval.copy_detection import CopyDetectionProtocol
from mm_sop.evaluation.retrieval.instance import RetrievalProtocol
from mm_sop.evaluation.robustness.robustness import RobustnessProtocol

__all__ = [
    'ClusteringProtocol',
    'CopyDetectionProtocol',
    'FinetuneProtocol',
    'KNNProtocol',
    'LinearProtocol',
    'LocalityProtocol',
    'LogisticProtocol',
    'RankProtocol',
    'RetrievalProtocol',
    'RobustnessProtocol',
    'TransferProtocol',
    'VideoSegmentationProtocol',
]
