"""Data sets, samplers and transforms."""

from . import composites, samplers, transforms
from .cifar_pictures import CIFAR10Pictures, CIFAR100Pictures
from .labelled_images import LabelledImages
from .listed_images import ListedImages
from .seeded_dataset import SeededDataset
from .segmentation_images import ADE20KImages, SegmentationImages
from .semantic_pairs import SemanticPairDataset
from .stl10_pictures import STL10Pictures
from .unlabelled_images import UnlabelledImages
from .worker import pretrain_worker_init

__all__ = [
    'ADE20KImages',
    'CIFAR100Pictures',
    'CIFAR10Pictures',
    'LabelledImages',
    'ListedImages',
    'STL10Pictures',
    'SeededDataset',
    'SegmentationImages',
    'SemanticPairDataset',
    'UnlabelledImages',
    'composites',
    'pretrain_worker_init',
    'samplers',
    'transforms',
]
