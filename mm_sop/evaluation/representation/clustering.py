"""Clustering of encodings and embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, pstdev

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import normalize

from mm_sop.datasets.labeled.arrays import CIFAR100Images
from mm_sop.evaluation.context import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult, Score
from mm_sop.evaluation.labeled_data import find_classification, read_labels, test_sets
from mm_sop.functional.silhouette import cosine_silhouette

# fmt: off
CIFAR100_SUPERCLASSES = np.array([
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13])
# fmt: on
"""The superclass of each of the 100 classes of CIFAR-100, both in alphabetical order."""

METRICS = dict(accuracy='accuracy', nmi='NMI', ari='ARI', silhouette='silhouette')
"""Scores that are charted, and their titles."""


@PROTOCOLS.register_module('clustering')
@dataclass
class ClusteringProtocol(Protocol):
    """Agreement of k-means clusters of the test images with their labels, and silhouettes of the labels.

    There are as many clusters as labels; features have unit length. If the checkpoint has a projector, its hidden
    layers and its output are clustered as well, to compare encoding and embedding as in "Clustering Properties of
    Self-Supervised Learning" (ReSA), section 3. Names of scores end with the features, except those of the encoding;
    scores of hidden layers are in the card and in the chart only.

    Args:
        labels: What is compared: ``'class'``, ``'superclass'`` (CIFAR-100) and ``'identity'``, each if it is known.
        tries: Clusterings from different seeds; their mean and standard deviation are reported.
        restarts: Runs of k-means for each clustering, of which the best counts.
    """

    version = 2

    readout: str = 'global'
    labels: Sequence[str] = ('superclass', 'class', 'identity')
    tries: int = 10
    restarts: int = 1

    @property
    def readouts(self) -> tuple[str, ...]:
        return (self.readout,)

    def find_data(self, context: EvaluationContext) -> dict[str, BaseDataset]:
        return test_sets(find_classification(context.data, context.transform))

    def run(self, context: EvaluationContext, data: dict[str, BaseDataset]) -> ProtocolResult:
        measured = {}
        for name, dataset in data.items():
            taps = context.project(context.features(dataset, self.readout))
            for label, truth in self._known_labels(dataset).items():
                by_tap = {tap: self._measure(features, truth, context.seed) for tap, features in taps.items()}
                measured[f'{name}_{label}'] = by_tap
        if not measured:
            raise ValueError(
                f'no label among {", ".join(self.labels)} divides the images of {" or ".join(data)} into two groups or '
                'more of which one has several images: there is nothing that clusters could agree with'
            )
        scores = {
            f'{name}_{metric}' + ('' if tap == 'encoding' else f'_{tap}'): score
            for tap in ('encoding', 'embedding')
            for name, by_tap in measured.items()
            for metric, score in by_tap.get(tap, {}).items()
        }
        card = {}
        panels: dict[str, dict] = {title: {} for title in METRICS.values()}
        for name, by_tap in measured.items():
            card[name] = {tap: {metric: vars(score) for metric, score in each.items()} for tap, each in by_tap.items()}
            for metric, title in METRICS.items():
                points = {tap: (each[metric].value, each[metric].error or 0) for tap, each in by_tap.items()}
                panels[title][name.replace('_', ' ')] = points
        return ProtocolResult(scores, card, dict(layers=panels))

    def _known_labels(self, dataset: BaseDataset) -> dict[str, np.ndarray]:
        """Labels of every image, if there are at least two groups and not only single images."""
        known = {}
        for label in self.labels:
            if label != 'superclass':
                values = read_labels(dataset, label)
            elif isinstance(dataset, CIFAR100Images):
                values = CIFAR100_SUPERCLASSES[read_labels(dataset, 'class')]
            else:
                continue
            if values is not None and 1 < len(np.unique(values)) < len(values):
                known[label] = values
        return known

    def _measure(self, features: Tensor, labels: np.ndarray, seed: int) -> dict[str, Score]:
        num_clusters = len(np.unique(labels))
        tries = []
        for number in range(self.tries):
            tries.append(agreement(labels, k_means(features, num_clusters, seed + number, self.restarts)))
            print_log(f'Clustered {num_clusters} groups, {number + 1} of {self.tries} times', 'current', level=10)
        silhouettes = cosine_silhouette(features, torch.from_numpy(labels).to(features.device))
        values = {metric: [each[metric] for each in tries] for metric in tries[0]}
        scores = {metric: Score(mean(each), pstdev(each), metric == 'accuracy') for metric, each in values.items()}
        spread = dict(silhouette=silhouettes.mean(), silhouette_spread=silhouettes.std(correction=0))
        return scores | {name: Score(float(value), percent=False) for name, value in spread.items()}


def k_means(features: Tensor, num_clusters: int, seed: int, restarts: int = 1) -> np.ndarray:
    """Cluster features by direction: k-means (k-means++, Lloyd) on rows of unit length, (N, D) -> (N,).

    Of ``restarts`` runs from different initial centers, the one with the smallest distances counts.
    """
    from sklearn.cluster import KMeans

    rows = normalize(features.float(), dim=1).cpu().numpy()
    return KMeans(num_clusters, n_init=restarts, random_state=seed).fit_predict(rows)


def agreement(labels: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """Compare clusters with labels, (N,) each.

    Returns:
        ``accuracy``: fraction of the samples in the right cluster for the best one-to-one assignment of clusters to
        labels (Hungarian method); ``nmi``: mutual information divided by the mean of both entropies; ``ari``: Rand
        index, adjusted for chance (Hubert & Arabie, 1985). Identical partitions score 1, trivial ones included.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    overlap = contingency_matrix(labels, clusters)
    matched = overlap[linear_sum_assignment(overlap, maximize=True)].sum()
    nmi, ari = normalized_mutual_info_score(labels, clusters), adjusted_rand_score(labels, clusters)
    return dict(accuracy=float(matched / len(labels)), nmi=float(nmi), ari=float(ari))
