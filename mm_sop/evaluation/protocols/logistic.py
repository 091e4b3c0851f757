"""Logistic regression on few labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.data import Dataset

from mm_sop.evaluation.classification import (
    class_labels,
    describe_subsets,
    few_labels_picture,
    label_subsets,
    name_few_scores,
    score_tries,
    test_sets,
)
from mm_sop.evaluation.logistic import fit_logistic, standardize
from mm_sop.evaluation.protocol import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult
from mm_sop.evaluation.sources import find_classification, find_subset_lists


@PROTOCOLS.register_module('logistic')
@dataclass
class LogisticProtocol(Protocol):
    """L2-regularised multinomial logistic regression on standardised features and few labels, as in iBOT.

    Features are standardised with the mean and deviation of the pictures whose labels are used.

    Args:
        readout: Features that are classified.
        penalty: Weight of the penalty, see :func:`fit_logistic`.
        max_iterations: Largest number of iterations of L-BFGS.
        shares: Shares of the labels, in (0, 1).
        shots: Numbers of labelled pictures of each class.
        tries: How often few labels are drawn.
    """

    readout: str = 'global'
    penalty: float = 1e-5
    max_iterations: int = 500
    shares: Sequence[float] = (0.01, 0.1)
    shots: Sequence[int] = (1, 5, 10)
    tries: int = 5

    @property
    def readouts(self) -> tuple[str, ...]:
        return (self.readout,)

    def find_data(self, context: EvaluationContext) -> dict[str, Dataset]:
        return find_classification(context.data, context.transform)

    def find_lists(self, context: EvaluationContext) -> dict[str, Path]:
        return find_subset_lists(context.data)

    def run(self, context: EvaluationContext, data: dict[str, Dataset]) -> ProtocolResult:
        features = {name: context.features(part, self.readout).to(context.device) for name, part in data.items()}
        labels = {name: class_labels(part).to(context.device) for name, part in data.items()}
        subsets = label_subsets(context, data['train'], self.shares, self.shots, self.tries)
        accuracies = {(name, subset): [] for name in test_sets(data) for subset in subsets}
        for subset, tries in subsets.items():
            for rows in map(torch.from_numpy, tries):
                for name, accuracy in self._fit_and_test(features, labels, rows).items():
                    accuracies[name, subset].append(accuracy)
            print_log(f'Logistic regression: {subset} done', logger='current')
        scores = {key: score_tries(values) for key, values in accuracies.items()}
        card = dict(subsets=describe_subsets(context, subsets))
        picture = few_labels_picture({'Logistic regression': scores}, 'Logistic regression')
        return ProtocolResult(name_few_scores(scores), card, [picture])

    def _fit_and_test(self, features: Mapping[str, Tensor], labels: Mapping[str, Tensor], rows: Tensor) -> dict:
        names = [name for name in features if name != 'train']
        train, *tests = standardize(features['train'][rows], *(features[name] for name in names))
        num_classes = int(labels['train'].max()) + 1
        weight, bias = fit_logistic(train, labels['train'][rows], num_classes, self.penalty, self.max_iterations)
        return {
            name: float((linear(test, weight, bias).argmax(1) == labels[name]).float().mean())
            for name, test in zip(names, tests, strict=True)
        }
