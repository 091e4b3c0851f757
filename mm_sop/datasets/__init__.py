"""Datasets, samplers and transforms."""

from mm_sop.datasets import samplers, transforms
from mm_sop.datasets.labeled.arrays import CIFAR10Images, CIFAR100Images, STL10Images
from mm_sop.datasets.labeled.folders import LabeledImages, ListedImages
from mm_sop.datasets.labeled.segmentation import ADE20KImages, SegmentationImages
from mm_sop.datasets.seeded import SampleKey, SeededDataset
from mm_sop.datasets.semantic_pairs import SemanticPairDataset
from mm_sop.datasets.shards import ShardedImages
from mm_sop.datasets.unlabeled import UnlabeledImages
from mm_sop.datasets.worker import pretrain_worker_init

__all__ = [
    'ADE20KImages',
    'CIFAR10Images',
    'CIFAR100Images',
    'LabeledImages',
    'ListedImages',
    'STL10Images',
    'SampleKey',
    'SeededDataset',
    'SegmentationImages',
    'SemanticPairDataset',
    'ShardedImages',
    'UnlabeledImages',
    'pretrain_worker_init',
    'samplers',
    'transforms',
]
