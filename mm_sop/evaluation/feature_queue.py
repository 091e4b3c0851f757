"""The newest features of labelled pictures."""

import torch
from torch import Tensor


class FeatureQueue:
    """Features and labels of which the newest are kept, in the order of their coming.

    Args:
        size: Number of features that are kept.

    Attributes:
        features: Features, (n, D), on the device of those that came first; n grows up to ``size``.
        labels: Labels, int64, (n,).

    Raises:
        ValueError: The size is not positive.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f'size of FeatureQueue must be at least 1, got {size}')
        self.size = size
        self.features = self.labels = None

    def __len__(self) -> int:
        return 0 if self.labels is None else len(self.labels)

    def push(self, features: Tensor, labels: Tensor) -> None:
        """Take up features.

        Args:
            features: Features, (b, D).
            labels: Labels, (b,).
        """
        labels = labels.to(features.device)
        if len(self):
            features, labels = torch.cat([self.features, features]), torch.cat([self.labels, labels])
        self.features, self.labels = features[-self.size :], labels[-self.size :]
