"""Metrics of features for MMEngine's validation and test loops."""

from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS

from mm_sop.functional.knn import neighbor_votes
from mm_sop.functional.neighbors import nearest_neighbors
from mm_sop.functional.rank import effective_rank, rankme


class _FeatureMetric(BaseMetric):
    """Collects the ``feature`` and the label, or None, of every image."""

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Collect the predictions of a self-supervised model; a ValueError if they have no features."""
        for sample in data_samples:
            if 'feature' not in sample:
                raise ValueError(
                    f'{type(self).__name__} needs predictions with `feature`, as self-supervised models give'
                )
            label = sample.get('gt_label')
            self.results.append((sample['feature'].cpu(), None if label is None else int(label)))


@METRICS.register_module()
class KNNMetric(_FeatureMetric):
    """Accuracy of the weighted vote of the nearest images.

    All other images of the validation set vote for an image; or, with ``num_bank``, the first images of the set
    vote for the others (a ``ConcatDataset`` of bank and queries).

    Args:
        num_neighbors: Number k of neighbors that vote.
        temperature: Temperature of the votes' weights.
        num_bank: Number of images that only vote.
        **kwargs: Arguments of :class:`mmengine.evaluator.BaseMetric`.

    Raises:
        ValueError: A number is smaller than 1.
    """

    default_prefix = 'knn'

    def __init__(
        self, num_neighbors: int = 20, temperature: float = 0.07, num_bank: int | None = None, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        if num_neighbors < 1 or (num_bank is not None and num_bank < 1):
            raise ValueError(f'KNNMetric: num_neighbors={num_neighbors} and num_bank={num_bank} must be at least 1')
        self.num_neighbors, self.temperature, self.num_bank = num_neighbors, temperature, num_bank

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Accuracy ``top1`` in percent, like MMPretrain's metrics.

        Args:
            results: Feature and label of every image, in the order of the dataset.

        Raises:
            ValueError: An image has no label, or there are too few.
        """
        k, num_bank, total = self.num_neighbors, self.num_bank, len(results)
        if any(label is None for _, label in results):
            raise ValueError('KNNMetric needs labeled images: give val_dataloader.dataset one label for each')
        if num_bank is not None and num_bank >= total:
            raise ValueError(
                f'KNNMetric: num_bank={num_bank} of {total} images leaves none to classify: concatenate bank and '
                'queries in val_dataloader.dataset, or leave num_bank out'
            )
        voters = total - 1 if num_bank is None else num_bank
        if k > voters:
            raise ValueError(f'KNNMetric: num_neighbors={k}, but only {voters} of {total} images vote: lower it')
        features, labels = torch.stack([feature for feature, _ in results]), torch.tensor([each for _, each in results])
        if num_bank is None:
            cosines, rows = nearest_neighbors(features, features, k + 1)
            # Among duplicates, the image itself may be missing from its neighbors; then the last neighbor is dropped.
            others = (rows != torch.arange(total)[:, None]).int()
            order = others.argsort(dim=1, descending=True, stable=True)[:, :k]
            cosines, rows, truth = cosines.gather(1, order), rows.gather(1, order), labels
        else:
            cosines, rows = nearest_neighbors(features[num_bank:], features[:num_bank], k)
            truth = labels[num_bank:]
        votes = neighbor_votes(cosines, labels[rows], [k], self.temperature, int(labels.max()) + 1)[k]
        return dict(top1=100 * float((votes.argmax(1) == truth).float().mean()))


@METRICS.register_module()
class RankMetric(_FeatureMetric):
    """RankMe, and effective rank of the centered features; labels are not needed."""

    default_prefix = 'rank'

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``rankme`` and ``effective_rank`` of all images."""
        features = torch.stack([feature for feature, _ in results])
        return dict(rankme=rankme(features), effective_rank=effective_rank(features - features.mean(0)))
