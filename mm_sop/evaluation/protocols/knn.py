"""k-nearest-neighbour classification."""

import math
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
from mm_sop.functional.knn import METRICS, knn_scores, neighbor_votes
from mm_sop.models.utils.distributed import own_samples
from mm_sop.visualization.page import Chart


@PROTOCOLS.register_module('knn')
@dataclass
class KNNProtocol(Protocol):
    """Weighted vote of the nearest training pictures by cosine, as in DINO and iBOT.

    One search over all processes serves every k and every label; of equal cosines the smaller row comes first. With few
    labels, the mean number of pictures of a class is one more k: a picture cannot have more right voters.

    Args:
        readout: Features that are compared.
        num_neighbors: Numbers k of neighbours that vote; those larger than the training set, or than the few labelled
            pictures, are left out.
        temperature: Temperature of the votes' weights.
        metric: ``'cosine'``, or ``'euclidean'``: the majority of the nearest by the distance of the features as they
            are, without a temperature.
        labels: What is classified: ``'class'``, and ``'identity'`` where it is known.
        shares: Shares of the labels, in (0, 1).
        shots: Numbers of labelled pictures of each class.
        tries: How often few labels are drawn.
    """

    version = 2
    presets = dict(resa_cifar=dict(num_neighbors=(5,), metric='euclidean'))

    readout: str = 'global'
    num_neighbors: Sequence[int] = (10, 20, 100, 200)
    temperature: float = 0.07
    metric: str = 'cosine'
    labels: Sequence[str] = ('class', 'identity')
    shares: Sequence[float] = (0.01, 0.1)
    shots: Sequence[int] = (1, 5, 10)
    tries: int = 5

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f'knn.metric must be one of {", ".join(METRICS)}, got {self.metric!r}')

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
        queries = test_sets(data)
        evaluator = _CachedKNN(context, self.readout, data['train'], queries, self.labels, numbers, **self._voting)
        summaries = evaluator.evaluate(None)[self.readout]
        scores = {name: Score(each['accuracy'], each['standard_error']) for name, each in summaries.items()}
        few, subsets, pictures = self._learn_few(context, data)
        chance = {name: each['chance'] for name, each in summaries.items()}
        card = dict(chance=chance, metric=self.metric, vote=self._vote, subsets=subsets)
        return ProtocolResult({**scores, **few}, card, [*evaluator.confusions(), *pictures])

    @property
    def _vote(self) -> str:
        return f'weights exp(cosine / {self.temperature:g})' if self.metric == 'cosine' else 'majority'

    @property
    def _voting(self) -> dict:
        return dict(temperature=self.temperature if self.metric == 'cosine' else math.inf, metric=self.metric)

    def _learn_few(
        self, context: EvaluationContext, data: dict[str, Dataset]
    ) -> tuple[dict[str, Score], dict[str, dict], list[Chart]]:
        """Scores with few labels, what was learnt from, and a chart if there is any."""
        subsets = label_subsets(context, data['train'], self.shares, self.shots, self.tries)
        card, scores, panels = describe_subsets(context, subsets), {}, {}
        for name, dataset in test_sets(data).items():
            panel = panels[f'k-NN, {name}'] = {}
            for subset, tries in subsets.items():
                found = self._score_few(context, data['train'], dataset, tries)
                card[subset]['num_neighbors'] = list(found)
                # name_few_scores turns the order around.
                scores.update({(name, f'{subset} k{k}'): found[k] for k in sorted(found, reverse=True)})
                panel['k = pictures of a class', subset] = next(iter(found.values()))
                panel.update({(f'k = {k}', subset): found[k] for k in self.num_neighbors if k in found})
        return name_few_scores(scores), card, [few_labels_picture(panels, 'k-NN')] if scores else []

    def _score_few(self, context: EvaluationContext, train: Dataset, dataset: Dataset, tries: list) -> dict[int, Score]:
        """Accuracy by k, that of the mean number of pictures of a class first."""
        bank, queries = (context.features(part, self.readout).to(context.device) for part in (train, dataset))
        bank_labels, truth = class_labels(train), class_labels(dataset)
        num_classes, count = int(bank_labels.max()) + 1, len(tries[0])
        per_class = min(max(1, round(count / num_classes)), max(self.num_neighbors))
        numbers = list(dict.fromkeys((per_class, *(k for k in self.num_neighbors if k <= count))))
        accuracies = {k: [] for k in numbers}
        for rows in map(torch.from_numpy, tries):
            labels = bank_labels[rows].to(bank.device)
            found = knn_scores(bank[rows], labels, queries, numbers, num_classes=num_classes, **self._voting)
            for k, votes in found.items():
                accuracies[k].append(float((votes.argmax(1).cpu() == truth).float().mean()))
        return {k: score_tries(each) for k, each in accuracies.items()}


class _CachedKNN(KNNEvaluator):
    """Searches among cached features, and keeps the votes for the classes with the first k."""

    def __init__(self, context: EvaluationContext, readout: str, *args, **voting) -> None:
        super().__init__(*args, **voting)
        self.context = context
        self.readout = readout
        self.predicted = {}

    def extract(self, encode: Callable | None, dataset: Dataset) -> dict[str, Tensor]:
        share = own_samples(self.context.features(dataset, self.readout))
        return {self.readout: share.to(self.context.device)}

    def score(self, query: str, cosines: Tensor, rows: Tensor) -> dict[str, dict]:
        k = min(20, max(self.num_neighbors))
        labels = class_labels(self.bank)
        votes = neighbor_votes(cosines, labels[rows], [k], self.temperature, int(labels.max()) + 1)[k]
        self.predicted[query] = k, votes.argmax(1).numpy()
        return super().score(query, cosines, rows)

    def confusions(self) -> list[Chart]:
        return [
            confusion_picture(
                predicted,
                class_labels(self.queries[name]).numpy(),
                self.queries[name],
                f'k-NN, {name}, k = {k}',
                f'confusion_{name}',
            )
            for name, (k, predicted) in self.predicted.items()
        ]
