"""k-nearest-neighbour classification."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mm_sop.evaluation.classification import (
    class_labels,
    confusion_picture,
    describe_subsets,
    few_labels_picture,
    label_subsets,
    name_few_scores,
    score_tries,
    test_sets,
)
from mm_sop.evaluation.knn import KNNEvaluator
from mm_sop.evaluation.protocol import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult, Score
from mm_sop.evaluation.sources import find_classification, find_subset_lists
from mm_sop.functional.knn import knn_scores, neighbor_votes
from mm_sop.models.utils.distributed import own_samples
from mm_sop.visualization.page import Chart


@PROTOCOLS.register_module('knn')
@dataclass
class KNNProtocol(Protocol):
    """Weighted vote of the nearest training pictures by cosine, as in DINO and iBOT.

    One search over all processes serves every k and every label; of equal cosines the smaller row comes first. With few
    labels, k is the mean number of pictures of a class: a picture cannot have more right voters.

    Args:
        readout: Features that are compared.
        num_neighbors: Numbers k of neighbours that vote; those larger than the training set are left out.
        temperature: Temperature of the votes' weights.
        labels: What is classified: ``'class'``, and ``'identity'`` where it is known.
        shares: Shares of the labels, in (0, 1).
        shots: Numbers of labelled pictures of each class.
        tries: How often few labels are drawn.
    """

    readout: str = 'global'
    num_neighbors: Sequence[int] = (10, 20, 100, 200)
    temperature: float = 0.07
    labels: Sequence[str] = ('class', 'identity')
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
        numbers = [k for k in self.num_neighbors if k <= len(data['train'])]
        if not numbers:
            raise ValueError(
                f'num_neighbors={tuple(self.num_neighbors)} with {len(data["train"])} training pictures: expected one '
                'number of at most as many, such as --options knn.num_neighbors=[1]'
            )
        evaluator = _CachedKNN(
            context, self.readout, data['train'], test_sets(data), self.labels, numbers, self.temperature
        )
        summaries = evaluator.evaluate(None)[self.readout]
        scores = {name: Score(each['accuracy'], each['standard_error']) for name, each in summaries.items()}
        subsets = label_subsets(context, data['train'], self.shares, self.shots, self.tries)
        few = {
            (name, subset): self._score_few(context, data['train'], dataset, tries)
            for name, dataset in test_sets(data).items()
            for subset, tries in subsets.items()
        }
        scores.update(name_few_scores(few))
        chance = {name: each['chance'] for name, each in summaries.items()}
        card = dict(chance=chance, subsets=describe_subsets(context, subsets))
        return ProtocolResult(scores, card, [*evaluator.confusions(), few_labels_picture(few, 'k-NN')])

    def _score_few(self, context: EvaluationContext, train: Dataset, dataset: Dataset, tries: list) -> Score:
        bank, queries = (context.features(part, self.readout).to(context.device) for part in (train, dataset))
        bank_labels, truth = class_labels(train), class_labels(dataset)
        num_classes, accuracies = int(bank_labels.max()) + 1, []
        for rows in map(torch.from_numpy, tries):
            k = min(max(1, round(len(rows) / num_classes)), max(self.num_neighbors))
            labels = bank_labels[rows].to(bank.device)
            votes = knn_scores(bank[rows], labels, queries, k, self.temperature, num_classes)[k]
            accuracies.append(float((votes.argmax(1).cpu() == truth).float().mean()))
        return score_tries(accuracies)


class _CachedKNN(KNNEvaluator):
    """Searches among cached features, and keeps the votes for the classes with the first k."""

    def __init__(self, context: EvaluationContext, readout: str, *args) -> None:
        super().__init__(*args)
        self.context = context
        self.readout = readout
        self.predicted = {}

    def extract(self, encode: Callable | None, dataset: Dataset) -> dict[str, Tensor]:
        share = own_samples(self.context.features(dataset, self.readout))
        return {self.readout: share.to(self.context.device)}

    def score(self, query: str, cosines: Tensor, rows: Tensor) -> dict[str, dict]:
        k = min(20, max(self.num_neighbors))
        labels = torch.from_numpy(self.bank_labels['class'])
        votes = neighbor_votes(cosines, labels[rows], [k], self.temperature, int(labels.max()) + 1)[k]
        self.predicted[query] = k, votes.argmax(1).numpy()
        return super().score(query, cosines, rows)

    def confusions(self) -> list[Chart]:
        return [
            confusion_picture(
                predicted,
                self.query_labels[name]['class'],
                self.queries[name],
                f'k-NN, {name}, k = {k}',
                f'confusion_{name}',
            )
            for name, (k, predicted) in self.predicted.items()
        ]
