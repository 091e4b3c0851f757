"""Clustering of encodings and embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, pstdev

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import Dataset

from mm_sop.datasets.cifar_pictures import CIFAR100Pictures
from mm_sop.evaluation.classification import test_sets
from mm_sop.evaluation.clustering import agreement, k_means
from mm_sop.evaluation.knn import read_labels
from mm_sop.evaluation.protocol import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult, Score
from mm_sop.evaluation.sources import find_classification
from mm_sop.functional.silhouette import cosine_silhouette
from mm_sop.visualization.page import Chart
from mm_sop.visualization.representation_charts import taps_chart

# fmt: off
CIFAR100_SUPERCLASSES = np.array([
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13])
# fmt: on
"""The superclass of each of the 100 classes of CIFAR-100, both in alphabetical order."""

METRICS = dict(accuracy='accuracy', nmi='NMI', ari='ARI', silhouette='silhouette')
"""Scores and how they are written."""


@PROTOCOLS.register_module('clustering')
@dataclass
class ClusteringProtocol(Protocol):
    """k-means of the test pictures against their labels, and the silhouettes of the labels themselves.

    There are as many clusters as labels; features are unit rows. Where the checkpoint has a projector, its hidden
    layers and its output are clustered as well: the study of "Clustering Properties of Self-Supervised Learning"
    (ReSA), section 3, of encoding against embedding. Scores of other features than the encoding carry their name; those
    of hidden layers are in the card and in the chart.

    Args:
        readout: Features of the encoder.
        labels: What is compared: ``'class'``, ``'superclass'`` (CIFAR-100) and ``'identity'``, each where it is known.
        tries: Clusterings from different seeds; their mean and deviation are reported.
        restarts: Runs of k-means within a try, of which the best counts.
    """

    version = 2

    readout: str = 'global'
    labels: Sequence[str] = ('superclass', 'class', 'identity')
    tries: int = 10
    restarts: int = 1

    @property
    def readouts(self) -> tuple[str, ...]:
        return (self.readout,)

    def find_data(self, context: EvaluationContext) -> dict[str, Dataset]:
        return test_sets(find_classification(context.data, context.transform))

    def run(self, context: EvaluationContext, data: dict[str, Dataset]) -> ProtocolResult:
        measured = {
            f'{name}_{label}': {tap: self._measure(features, truth, context.seed) for tap, features in taps.items()}
            for name, dataset in data.items()
            for taps in [context.project(context.features(dataset, self.readout))]
            for label, truth in self._known_labels(dataset).items()
        }
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
        card = {
            name: {tap: {metric: vars(score) for metric, score in each.items()} for tap, each in by_tap.items()}
            for name, by_tap in measured.items()
        }
        return ProtocolResult(scores, card, [_taps_picture(measured)])

    def _known_labels(self, dataset: BaseDataset) -> dict[str, np.ndarray]:
        """Labels of every picture that tell groups of pictures apart."""
        known = {label: _read(dataset, label) for label in self.labels}
        return {
            label: values
            for label, values in known.items()
            if values is not None and 1 < len(np.unique(values)) < len(values)
        }

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


def _read(dataset: BaseDataset, label: str) -> np.ndarray | None:
    if label != 'superclass':
        return read_labels(dataset, label)
    return CIFAR100_SUPERCLASSES[read_labels(dataset, 'class')] if isinstance(dataset, CIFAR100Pictures) else None


def _taps_picture(measured: dict[str, dict[str, dict[str, Score]]]) -> Chart:
    panels = {
        title: {
            name.replace('_', ' '): {tap: (each[metric].value, each[metric].error or 0) for tap, each in taps.items()}
            for name, taps in measured.items()
        }
        for metric, title in METRICS.items()
    }
    text = 'Agreement of clusters with labels after each layer from the encoder to the end of the projector.'
    return Chart.drawn('layers', partial(taps_chart, panels), text)
