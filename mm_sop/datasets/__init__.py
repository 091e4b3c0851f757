"""Data sets, samplers and transforms."""

from . import composites, samplers, transforms
from .labelled_images import LabelledImages
from .seeded_dataset import SeededDataset
from .unlabelled_images import UnlabelledImages
from .worker import pretrain_worker_init

__all__ = [
    'LabelledImages',
    'SeededDataset',
    'UnlabelledImages',
    'composites',
    'pretrain_worker_init',
    'samplers',
    'transforms',
]
