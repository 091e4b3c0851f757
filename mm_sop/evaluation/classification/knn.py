"""k-nearest-neighbor classification."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmengine.dataset import BaseDataset
from torch import Tensor
from torch.utils.data import Dataset

from mm_sop.evaluation.classification.common import (
    FewLabelsProtocol,
    chart_points,
    confusion,
    describe_subsets,
    label_subsets,
    name_subset_scores,
    score_tries,
)
from mm_sop.evaluation.classification.knn_evaluator import KNNEvaluator
from mm_sop.evaluation.context import PROTOCOLS, EvaluationContext, ProtocolResult, Score
from mm_sop.evaluation.labeled_data import class_labels, test_sets
from mm_sop.functional.knn import knn_scores, neighbor_votes
from mm_sop.functional.neighbors import METRICS
from mm_sop.utils.distributed import own_samples

# Neighbors that vote for the confusion matrix, if there are as many.
_SHOWN_NEIGHBORS = 20


@PROTOCOLS.register_module('knn')
@dataclass
class KNNProtocol(FewLabelsProtocol):
    """Weighted vote of the nearest training images by cosine, as in DINO and iBOT.

    One search over all processes serves every k and every label; ties are broken by the smaller row. For subsets of the
    labels, the mean number of images of a class is one more k, as an image cannot have more right voters.

    Args:
        num_neighbors: Numbers k of neighbors that vote; those larger than the training set or the subset of the labels
            are left out.
        temperature: Temperature of the votes' weights.
        metric: ``'cosine'``, or ``'euclidean'`` for the majority of the nearest by Euclidean distance of the features
            without normalization, without a temperature.
        labels: What is classified: ``'class'``, and ``'identity'`` if it is known.
        fractions: Fractions of the labels, in (0, 1).
        shots: Numbers of labeled images of each class.
        tries: Draws of each subset of the labels.
    """

    version = 2
    presets = dict(resa_cifar=dict(num_neighbors=(5,), metric='euclidean'))

    readout: str = 'global'
    num_neighbors: Sequence[int] = (10, 20, 100, 200)
    temperature: float = 0.07
    metric: str = 'cosine'
    labels: Sequence[str] = ('class', 'identity')
    fractions: Sequence[float] = (0.01, 0.1)
    shots: Sequence[int] = (1, 5, 10)
    tries: int = 5

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f'knn.metric must be one of {", ".join(METRICS)}, got {self.metric!r}')

    @property
    def readouts(self) -> tuple[str, ...]:
        return (self.readout,)

    def run(self, context: EvaluationContext, data: dict[str, BaseDataset]) -> ProtocolResult:
        numbers = [k for k in self.num_neighbors if k <= len(data['train'])]
        if not numbers:
            raise ValueError(
                f'num_neighbors={tuple(self.num_neighbors)} with {len(data["train"])} training images: expected one '
                'number of at most as many, such as --options knn.num_neighbors=[1]'
            )

        def extract(dataset: Dataset) -> dict[str, Tensor]:
            return {self.readout: own_samples(context.features(dataset, self.readout)).to(context.device)}

        evaluator = KNNEvaluator(data['train'], test_sets(data), self.labels, numbers, **self._voting)
        labels, k = class_labels(data['train']), min(_SHOWN_NEIGHBORS, max(numbers))
        summaries, confusions = {}, {}
        for query, _, similarities, rows in evaluator.search(extract):
            summaries.update(evaluator.score(query, similarities, rows))
            votes = neighbor_votes(similarities, labels[rows], [k], evaluator.temperature, int(labels.max()) + 1)[k]
            truth, title = class_labels(data[query]).numpy(), f'k-NN, {query}, k = {k}'
            confusions[query] = confusion(votes.argmax(1).numpy(), truth, data[query], title)
        scores = {name: Score(each['accuracy'], each['standard_error']) for name, each in summaries.items()}
        subset_scores, subsets, panels = self._vote_of_subsets(context, data)
        chance = {name: each['chance'] for name, each in summaries.items()}
        vote = f'weights exp(cosine / {self.temperature:g})' if self.metric == 'cosine' else 'majority'
        card = dict(chance=chance, metric=self.metric, vote=vote, subsets=subsets)
        return ProtocolResult({**scores, **subset_scores}, card, dict(confusion=confusions, few_labels=panels))

    @property
    def _voting(self) -> dict:
        return dict(temperature=self.temperature if self.metric == 'cosine' else math.inf, metric=self.metric)

    def _vote_of_subsets(
        self, context: EvaluationContext, data: dict[str, BaseDataset]
    ) -> tuple[dict[str, Score], dict[str, dict], dict[str, dict]]:
        """Scores with few labels, a description of these for the card, and panels of a chart."""
        subsets = label_subsets(context, data['train'], self.fractions, self.shots, self.tries)
        card, panels = describe_subsets(context, subsets), {}
        scores: dict[tuple[str, str], Score] = {}
        for name, dataset in test_sets(data).items():
            points: dict[tuple[str, str], Score] = {}
            for subset, tries in subsets.items():
                by_k = self._score_subset(context, data['train'], dataset, tries)
                card[subset]['num_neighbors'] = list(by_k)
                # Sorted backwards, as name_subset_scores reverses the order.
                scores.update({(name, f'{subset} k{k}'): by_k[k] for k in sorted(by_k, reverse=True)})
                points['k = images of a class', subset] = next(iter(by_k.values()))
                points.update({(f'k = {k}', subset): by_k[k] for k in self.num_neighbors if k in by_k})
            panels[f'k-NN, {name}'] = chart_points(points)
        return name_subset_scores(scores), card, panels if scores else {}

    def _score_subset(
        self, context: EvaluationContext, train: BaseDataset, dataset: BaseDataset, tries: list
    ) -> dict[int, Score]:
        """Accuracy by k; the mean number of images of a class is the first k."""
        bank, queries = (context.features(each, self.readout).to(context.device) for each in (train, dataset))
        bank_labels, truth = class_labels(train), class_labels(dataset)
        num_classes, count = int(bank_labels.max()) + 1, len(tries[0])
        per_class = min(max(1, round(count / num_classes)), max(self.num_neighbors))
        numbers = list(dict.fromkeys((per_class, *(k for k in self.num_neighbors if k <= count))))
        accuracies: dict[int, list[float]] = {k: [] for k in numbers}
        for rows in map(torch.from_numpy, tries):
            labels = bank_labels[rows].to(bank.device)
            votes = knn_scores(bank[rows], labels, queries, numbers, num_classes=num_classes, **self._voting)
            for k, each in votes.items():
                accuracies[k].append(float((each.argmax(1).cpu() == truth).float().mean()))
        return {k: score_tries(each) for k, each in accuracies.items()}
