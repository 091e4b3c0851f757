"""Logistic regression on frozen features: evaluation on few labels, and classifiers for further images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from mm_sop.evaluation.classification.common import (
    FewLabelsProtocol,
    chart_points,
    describe_subsets,
    label_subsets,
    name_subset_scores,
    score_tries,
)
from mm_sop.evaluation.context import PROTOCOLS, EvaluationContext, ProtocolResult
from mm_sop.evaluation.labeled_data import class_labels, test_sets
from mm_sop.functional.knn import knn_scores

CLASSIFIERS = ('knn', 'linear')
"""Kinds of :class:`FrozenClassifiers`."""


@PROTOCOLS.register_module('logistic')
@dataclass
class LogisticProtocol(FewLabelsProtocol):
    """L2-regularized multinomial logistic regression on standardized features and few labels, as in iBOT.

    Features are standardized with the mean and standard deviation of the labeled images.

    Args:
        penalty: Weight of the penalty, see :func:`fit_logistic`.
        max_iterations: Largest number of iterations of L-BFGS.
        fractions: Fractions of the labels, in (0, 1).
        shots: Numbers of labeled images of each class.
        tries: Draws of each subset of the labels.
    """

    readout: str = 'global'
    penalty: float = 1e-5
    max_iterations: int = 500
    fractions: Sequence[float] = (0.01, 0.1)
    shots: Sequence[int] = (1, 5, 10)
    tries: int = 5

    @property
    def readouts(self) -> tuple[str, ...]:
        return (self.readout,)

    def run(self, context: EvaluationContext, data: dict[str, BaseDataset]) -> ProtocolResult:
        features = {name: context.features(each, self.readout).to(context.device) for name, each in data.items()}
        labels = {name: class_labels(each).to(context.device) for name, each in data.items()}
        subsets = label_subsets(context, data['train'], self.fractions, self.shots, self.tries)
        tests, num_classes = list(test_sets(data)), int(labels['train'].max()) + 1
        accuracies: dict[tuple[str, str], list[float]] = {(name, subset): [] for name in tests for subset in subsets}
        for subset, tries in subsets.items():
            for rows in map(torch.from_numpy, tries):
                train, *others = standardize(features['train'][rows], *(features[name] for name in tests))
                known = labels['train'][rows]
                weight, bias = fit_logistic(train, known, num_classes, self.penalty, self.max_iterations)
                for name, test in zip(tests, others, strict=True):
                    correct = linear(test, weight, bias).argmax(1) == labels[name]
                    accuracies[name, subset].append(float(correct.float().mean()))
            print_log(f'Logistic regression: {subset} done', logger='current')
        scores = {key: score_tries(values) for key, values in accuracies.items()}
        card = dict(subsets=describe_subsets(context, subsets))
        panels = {'Logistic regression': chart_points(scores)}
        return ProtocolResult(name_subset_scores(scores), card, dict(few_labels=panels))


def fit_logistic(
    features: Tensor, labels: Tensor, num_classes: int, penalty: float = 1e-5, max_iterations: int = 500
) -> tuple[Tensor, Tensor]:
    """Minimize the mean cross-entropy plus ``penalty / 2 * |W|^2`` by L-BFGS.

    The bias has no penalty. ``C`` of scikit-learn is ``1 / (penalty * n)``.

    Args:
        features: Features, (n, D), preferably standardized; their type is that of the computation.
        labels: Classes, int64, (n,), in [0, C).
        num_classes: Number C of classes.
        penalty: At least 0.
        max_iterations: Largest number of iterations.

    Returns:
        Weights, (C, D), and biases, (C,).

    Raises:
        ValueError: The penalty is negative, or the shapes do not fit.
    """
    if penalty < 0 or labels.shape != features.shape[:1]:
        raise ValueError(
            f'expected a penalty of at least 0 and one label per row, got {penalty}, {tuple(features.shape)} features '
            f'and {tuple(labels.shape)} labels'
        )
    weight = features.new_zeros(num_classes, features.shape[1]).requires_grad_()
    bias = features.new_zeros(num_classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iterations, tolerance_grad=1e-6, history_size=10, line_search_fn='strong_wolfe'
    )

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        objective = cross_entropy(linear(features, weight, bias), labels) + penalty / 2 * weight.square().sum()
        objective.backward()
        return objective

    with torch.enable_grad():
        optimizer.step(evaluate)
    return weight.detach(), bias.detach()


def standardize(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Subtract the mean of the training features, (n, D), and divide by their standard deviation, in all features.

    A dimension that is constant in training is only shifted.
    """
    mean, std = mean_and_std(train)
    return [(features - mean) / std for features in (train, *others)]


def mean_and_std(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every dimension, (D,) each; an std of 1 for constant dimensions."""
    mean, std = features.mean(0), features.std(0, correction=0)
    return mean, std.where(std > 0, 1.0)


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
        """Classify features, (n, D).

        Args:
            features: The features.
            groups: Class that every training class is mapped to, -1 for none, see :func:`match_classes`.
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
