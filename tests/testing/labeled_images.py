"""Labeled dataset that lives in memory, for tests of evaluation and visualization."""

import numpy as np
import torch
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset

CLASSES = ('dark', 'striped', 'light')


@DATASETS.register_module()
class TinyImages(Dataset):
    """Noisy images of a few objects; the class of object i is i % 3.

    Args:
        identities: Objects that are shown in turn.
        count: Number of images.
        seed: Seed of the noise.
        size: Side in pixels.
        known: Annotations that the dataset gives.
    """

    def __init__(self, identities, count=12, seed=0, size=16, noise=40, known=('gt_label', 'identity')):
        self.metainfo = dict(classes=CLASSES)
        self.identities = [identities[index % len(identities)] for index in range(count)]
        objects = np.random.default_rng(9).integers(40, 215, (100, 3, size, size))
        drawn = np.random.default_rng(seed).integers(-noise, noise + 1, (count, 3, size, size))
        self.images = torch.from_numpy((objects[self.identities] + drawn).clip(0, 255).astype(np.uint8))
        self.known = known
        self.loaded = []

    def __len__(self):
        return len(self.images)

    def get_data_info(self, index):
        info = dict(gt_label=self.identities[index] % 3, identity=self.identities[index])
        return {key: info[key] for key in self.known}

    def __getitem__(self, index):
        self.loaded.append(index)
        sample, label = DataSample(), self.get_data_info(index).get('gt_label')
        return dict(inputs=self.images[index], data_samples=sample if label is None else sample.set_gt_label(label))
