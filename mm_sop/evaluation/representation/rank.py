"""Rank and spread of features, without labels."""

from dataclasses import dataclass

import numpy as np
from mmengine.dataset import BaseDataset
from torch.utils.data import Subset

from mm_sop.datasets.seeded import SampleKey, SeededDataset
from mm_sop.evaluation.context import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult, Score
from mm_sop.evaluation.labeled_data import find_classification, random_views
from mm_sop.functional.rank import alignment, effective_rank, lidar, rankme, singular_values, uniformity


@PROTOCOLS.register_module('rank')
@dataclass
class RankProtocol(Protocol):
    """RankMe, LiDAR, effective rank, uniformity and alignment of the encoding and of the embedding, if there is one.

    RankMe, effective rank (of centered features) and uniformity are measured on training images without augmentation,
    LiDAR and alignment on random crops and flips of them. Labels are not used.

    Args:
        images: Largest number of images; 25,600 in the paper of RankMe.
        lidar_images: Number of images of which views are drawn; 1,000 in the paper of LiDAR.
        views: Views of each image; 50 in the paper of LiDAR.
    """

    version = 2
    readouts = ('global',)

    images: int = 25_600
    lidar_images: int = 1_000
    views: int = 50

    def find_data(self, context: EvaluationContext) -> dict[str, BaseDataset]:
        return dict(train=find_classification(context.data, context.transform)['train'])

    def run(self, context: EvaluationContext, data: dict[str, BaseDataset]) -> ProtocolResult:
        order = np.random.default_rng(context.seed).permutation(len(data['train']))
        plain = context.project(context.features(data['train'])[order[: self.images]])
        rows = order[: self.lidar_images]
        seeded = SeededDataset(random_views(data['train'], context.transform), context.seed)
        keys = [SampleKey(view, row) for row in rows.tolist() for view in range(self.views)]
        seen = Subset(seeded, keys)  # type: ignore[arg-type]  # which takes keys instead of indices
        encoded = context.map_images(seen, context.encoder.encode, 'views')
        views = context.project(encoded['features'])
        scores = {}
        for tap in (tap for tap in plain if not tap.startswith('hidden')):
            features, grouped = plain[tap], views[tap].unflatten(0, (len(rows), self.views))  # (N, D), (n, q, D)
            values = dict(
                rankme=rankme(features),
                effective_rank=effective_rank(features - features.mean(0)),
                lidar=lidar(grouped),
                uniformity=uniformity(features),
                alignment=alignment(grouped[:, 0], grouped[:, 1]),
            )
            suffix = '' if tap == 'encoding' else f'_{tap}'
            scores.update({f'{name}{suffix}': Score(value, percent=False) for name, value in values.items()})
        widths = {tap: each.shape[1] for tap, each in plain.items()}
        card = dict(images=len(plain['encoding']), lidar_images=len(rows), dimensions=widths)
        spectra = {tap: singular_values(each - each.mean(0)).cpu().numpy() for tap, each in plain.items()}
        return ProtocolResult(scores, card, dict(spectra=spectra))
