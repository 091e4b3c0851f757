"""Rank and spread of features, without labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Subset

from mm_sop.datasets.seeded_dataset import SeededDataset
from mm_sop.evaluation.frozen_classifiers import map_pictures
from mm_sop.evaluation.linear_batches import augmented
from mm_sop.evaluation.protocol import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult, Score
from mm_sop.evaluation.sources import find_classification
from mm_sop.functional.rank import alignment, effective_rank, lidar, rankme, singular_values, uniformity
from mm_sop.visualization.page import Chart
from mm_sop.visualization.representation_charts import spectrum_chart


@PROTOCOLS.register_module('rank')
@dataclass
class RankProtocol(Protocol):
    """RankMe, LiDAR, effective rank, uniformity and alignment of the encoding and, where there is one, the embedding.

    RankMe, effective rank (of centred features) and uniformity are those of plain training pictures; LiDAR and
    alignment compare random crops and flips of them. Labels are not used.

    Args:
        pictures: Largest number of pictures; RankMe's is 25,600.
        lidar_pictures: Number of pictures of which views are drawn; LiDAR's is 1,000.
        views: Views of each; LiDAR has 50.
    """

    version = 2

    pictures: int = 25_600
    lidar_pictures: int = 1_000
    views: int = 50

    @property
    def readouts(self) -> tuple[str, ...]:
        return ('global',)

    def find_data(self, context: EvaluationContext) -> dict[str, Dataset]:
        return dict(train=find_classification(context.data, context.transform)['train'])

    def run(self, context: EvaluationContext, data: dict[str, Dataset]) -> ProtocolResult:
        order = np.random.default_rng(context.seed).permutation(len(data['train']))
        plain = context.project(context.features(data['train'])[order[: self.pictures]])
        chosen = order[: self.lidar_pictures]
        views = context.project(self._encode_views(context, data['train'], chosen))
        scores = {}
        for tap in [tap for tap in plain if not tap.startswith('hidden')]:
            figures = _measure(plain[tap], views[tap].unflatten(0, (len(chosen), self.views)))
            suffix = '' if tap == 'encoding' else f'_{tap}'
            scores.update({f'{name}{suffix}': Score(value, percent=False) for name, value in figures.items()})
        widths = {tap: each.shape[1] for tap, each in plain.items()}
        card = dict(pictures=len(plain['encoding']), lidar_pictures=len(chosen), dimensions=widths)
        return ProtocolResult(scores, card, [_spectrum_picture(plain)])

    def _encode_views(self, context: EvaluationContext, dataset: Dataset, rows: np.ndarray) -> Tensor:
        """Encodings of the views of every picture, (n q, D), the views of one picture beside each other."""
        seeded = SeededDataset(augmented(dataset, context.transform), context.seed)
        draws = (rows[:, None] + len(seeded) * np.arange(self.views)).ravel().tolist()
        return map_pictures(context, Subset(seeded, draws), context.encoder, 'views')['features']


def _measure(features: Tensor, views: Tensor) -> dict[str, float]:
    return dict(
        rankme=rankme(features),
        effective_rank=effective_rank(features - features.mean(0)),
        lidar=lidar(views),
        uniformity=uniformity(features),
        alignment=alignment(views[:, 0], views[:, 1]),
    )


def _spectrum_picture(features: Mapping[str, Tensor]) -> Chart:
    spectra = {name: singular_values(each - each.mean(0)).cpu().numpy() for name, each in features.items()}
    text = 'Singular values of the centred features as shares of their sum, in falling order.'
    return Chart.drawn('spectrum', partial(spectrum_chart, spectra), text)
