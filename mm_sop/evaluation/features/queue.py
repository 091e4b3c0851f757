"""Queue of the newest features of labeled images."""

import torch
from torch import Tensor


class FeatureQueue:
    """First-in, first-out queue of features and labels.

    Attributes:
        features: Features, (n, D), oldest first, on the device of the first ones; n grows up to ``size``.
        labels: Labels, int64, (n,).

    Raises:
        ValueError: The size is not positive.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f'size of FeatureQueue must be at least 1, got {size}')
        self.size = size
        self.features = torch.empty(0, 0)
        self.labels = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def push(self, features: Tensor, labels: Tensor) -> None:
        """Append features, (b, D), and labels, (b,), and drop the oldest beyond the capacity."""
        labels = labels.to(features.device)
        if len(self):
            features, labels = torch.cat([self.features, features]), torch.cat([self.labels, labels])
        self.features, self.labels = features[-self.size :], labels[-self.size :]
