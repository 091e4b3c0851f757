"""Evaluation protocols; importing this package registers them."""

from mm_sop.evaluation.protocols.clustering import ClusteringProtocol
from mm_sop.evaluation.protocols.copy_detection import CopyDetectionProtocol
from mm_sop.evaluation.protocols.finetune import FinetuneProtocol
from mm_sop.evaluation.protocols.knn import KNNProtocol
from mm_sop.evaluation.protocols.linear import LinearProtocol
from mm_sop.evaluation.protocols.locality import LocalityProtocol
from mm_sop.evaluation.protocols.logistic import LogisticProtocol
from mm_sop.evaluation.protocols.rank import RankProtocol
from mm_sop.evaluation.protocols.retrieval import RetrievalProtocol
from mm_sop.evaluation.protocols.robustness import RobustnessProtocol
from mm_sop.evaluation.protocols.transfer import TransferProtocol
from mm_sop.evaluation.protocols.videoseg import VideoSegmentationProtocol

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
