"""Logistic regression on frozen features, and its evaluation on few labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


@PROTOCOLS.register_module('logistic')
@dataclass
class LogisticProtocol(FewLabelsProtocol):
    """L2-regularized multinomial logistic regression on standardized features and few labels, as in iBOT.

    Features are standardized with the mean and standard deviation of the labeled images.

    Args:
        readout: Readout of the features.
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
        accuracies: dict[tuple[str, str], list[float]] = {
            (name, subset): [] for name in test_sets(data) for subset in subsets
        }
        for subset, tries in subsets.items():
            for rows in map(torch.from_numpy, tries):
                for name, accuracy in self._fit_and_test(features, labels, rows).items():
                    accuracies[name, subset].append(accuracy)
            print_log(f'Logistic regression: {subset} done', logger='current')
        scores = {key: score_tries(values) for key, values in accuracies.items()}
        panels = {'Logistic regression': chart_points(scores)}
        card = dict(subsets=describe_subsets(context, subsets))
        return ProtocolResult(name_subset_scores(scores), card, dict(few_labels=panels))

    def _fit_and_test(
        self, features: Mapping[str, Tensor], labels: Mapping[str, Tensor], rows: Tensor
    ) -> dict[str, float]:
        names = [name for name in features if name != 'train']
        train, *tests = standardize(features['train'][rows], *(features[name] for name in names))
        num_classes = int(labels['train'].max()) + 1
        weight, bias = fit_logistic(train, labels['train'][rows], num_classes, self.penalty, self.max_iterations)
        return {
            name: float((linear(test, weight, bias).argmax(1) == labels[name]).float().mean())
            for name, test in zip(names, tests, strict=True)
        }


def fit_logistic(
    features: Tensor, labels: Tensor, num_classes: int, penalty: float = 1e-5, max_iterations: int = 500
) -> tuple[Tensor, Tensor]:
    """Minimize the mean cross-entropy plus ``penalty / 2 * |W|^2`` by L-BFGS.

    The bias has no penalty. ``C`` of scikit-learn is ``1 / (penalty * n)``.

    Args:
        features: Features, (n, D), preferably standardized; their type is that of the computation.
        labels: Classes, int64, (n,), in [0, num_classes).
        num_classes: Number C of classes.
        penalty: Weight of the penalty, at least 0.
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
    """Subtract the mean of the training features and divide by their standard deviation.

    Args:
        train: Training features, (n, D).
        others: Further features, (m, D) each.

    Returns:
        All of them; a dimension that is constant in training is only shifted.
    """
    mean, std = mean_and_std(train)
    return [(features - mean) / std for features in (train, *others)]


def mean_and_std(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every dimension, (D,) each; an std of 1 for constant dimensions."""
    mean, std = features.mean(0), features.std(0, correction=0)
    return mean, std.where(std > 0, 1.0)
