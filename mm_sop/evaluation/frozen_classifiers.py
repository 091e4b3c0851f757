"""Classifiers on frozen features that are tried on pictures of another kind than they learnt from."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from mmengine.dist import get_comm_device, get_dist_info
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.data import Dataset

from mm_sop.evaluation.features import extract_features, gather_features
from mm_sop.evaluation.logistic import fit_logistic
from mm_sop.evaluation.protocol import EvaluationContext
from mm_sop.functional.knn import knn_scores

CLASSIFIERS = ('knn', 'linear')


class FrozenClassifiers:
    """A vote of the nearest neighbours and a linear head, both on the features of the training pictures.

    Args:
        features: Training features, (N, D).
        labels: Their classes, int64, (N,).
        num_neighbors: Neighbours that vote, at most N of them.
        penalty: Weight of the penalty of the linear head, see :func:`fit_logistic`.

    Attributes:
        weight: Weights of the linear head for plain features, (C, D).
        bias: Its biases, (C,).
    """

    def __init__(self, features: Tensor, labels: Tensor, num_neighbors: int = 20, penalty: float = 1e-4) -> None:
        self.features, self.labels = features, labels.to(features.device)
        self.num_neighbors = min(num_neighbors, len(features))
        self.num_classes = int(labels.max()) + 1
        mean, deviation = features.mean(0), features.std(0, correction=0)
        deviation = deviation.where(deviation > 0, 1.0)
        weight, bias = fit_logistic((features - mean) / deviation, self.labels, self.num_classes, penalty)
        self.weight = weight / deviation
        self.bias = bias - self.weight @ mean

    def logits(self, features: Tensor) -> Tensor:
        """Logits of the linear head, (n, C), with gradients."""
        return linear(features, self.weight, self.bias)

    @torch.no_grad()
    def predict(self, features: Tensor, groups: np.ndarray | None = None, restrict: bool = False) -> dict[str, Tensor]:
        """Classify.

        Args:
            features: Features, (n, D).
            groups: Class that every training class stands for, -1 for none, see :func:`match_classes`. Defaults to
                None, itself.
            restrict: Whether only classes that stand for one may be answered; else an answer without one is -1.

        Returns:
            Predictions of the :data:`CLASSIFIERS`, int64, (n,), on the CPU.
        """
        k = self.num_neighbors
        votes = knn_scores(self.features, self.labels, features, k, num_classes=self.num_classes)[k]
        answers = dict(knn=votes, linear=self.logits(features))
        if groups is None:
            return {name: each.argmax(1).cpu() for name, each in answers.items()}
        groups = torch.from_numpy(groups)
        allowed = (groups >= 0).to(features.device) | (not restrict)
        return {name: groups[each.where(allowed, -torch.inf).argmax(1).cpu()] for name, each in answers.items()}


def map_pictures(context: EvaluationContext, dataset: Dataset, measure: Callable[[dict], Mapping[str, Tensor]]) -> dict:
    """Measure something for every picture, shared by all processes.

    Args:
        context: What the evaluation runs with.
        dataset: Data set.
        measure: Maps a collated batch to named figures, (B, n) each.

    Returns:
        Figures by name, (N, n), fp32, on the CPU of every process.
    """
    rank, world_size = get_dist_info()
    shares = extract_features(
        partial(_to_communicate, measure, world_size),
        dataset,
        context.batch_size,
        context.num_workers,
        rank,
        world_size,
    )
    return {name: gather_features(share, len(dataset)).cpu() for name, share in shares.items()}


def _to_communicate(measure: Callable, world_size: int, batch: dict) -> dict[str, Tensor]:
    device = get_comm_device() if world_size > 1 else torch.device('cpu')
    return {name: each.float().to(device) for name, each in measure(batch).items()}
