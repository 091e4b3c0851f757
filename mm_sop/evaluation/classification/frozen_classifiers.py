"""Classifiers on frozen features that are applied to other images than those of training."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from mm_sop.evaluation.classification.logistic import fit_logistic, mean_and_std
from mm_sop.functional.knn import knn_scores

CLASSIFIERS = ('knn', 'linear')


class FrozenClassifiers:
    """k-NN vote and linear head, both on the features of the training images.

    Args:
        features: Training features, (N, D).
        labels: Their classes, int64, (N,).
        num_neighbors: Neighbors that vote, at most N of them.
        penalty: Weight of the penalty of the linear head, see :func:`fit_logistic`.

    Attributes:
        weight: Weights of the linear head for features without standardization, (C, D).
        bias: Its biases, (C,).
    """

    def __init__(self, features: Tensor, labels: Tensor, num_neighbors: int = 20, penalty: float = 1e-4) -> None:
        self.features, self.labels = features, labels.to(features.device)
        self.num_neighbors = min(num_neighbors, len(features))
        self.num_classes = int(labels.max()) + 1
        mean, std = mean_and_std(features)
        weight, bias = fit_logistic((features - mean) / std, self.labels, self.num_classes, penalty)
        self.weight = weight / std
        self.bias = bias - self.weight @ mean

    def logits(self, features: Tensor) -> Tensor:
        """Logits of the linear head, (n, C), with gradients."""
        return linear(features, self.weight, self.bias)

    @torch.no_grad()
    def predict(self, features: Tensor, groups: np.ndarray | None = None, restrict: bool = False) -> dict[str, Tensor]:
        """Classify features.

        Args:
            features: Features, (n, D).
            groups: Class that every training class is mapped to, -1 for none, see :func:`match_classes`. Defaults to
                None, itself.
            restrict: Whether to predict only training classes that are mapped to a class; else the others are -1.

        Returns:
            Predictions by :data:`CLASSIFIERS`, int64, (n,), on the CPU.
        """
        k = self.num_neighbors
        votes = knn_scores(self.features, self.labels, features, k, num_classes=self.num_classes)[k]
        answers = dict(knn=votes, linear=self.logits(features))
        if groups is None:
            return {name: each.argmax(1).cpu() for name, each in answers.items()}
        classes = torch.from_numpy(groups)
        allowed = (classes >= 0).to(features.device) | (not restrict)
        return {name: classes[each.where(allowed, -torch.inf).argmax(1).cpu()] for name, each in answers.items()}
