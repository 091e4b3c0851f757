"""Metrics of features for MMEngine's validation and test loops."""

from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS
from torch import Tensor

from mm_sop.functional.knn import neighbor_votes
from mm_sop.functional.neighbors import nearest_neighbors
from mm_sop.functional.rank import effective_rank, rankme


class _FeatureMetric(BaseMetric):
    """Collects the ``feature`` and the label, or None, of every image."""

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Collect the predictions of a batch.

        Args:
            data_batch: Unused.
            data_samples: Predictions of a self-supervised model.

        Raises:
            ValueError: The model gives no features.
        """
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
        num_neighbors: Number k of neighbors that vote. Defaults to 20.
        temperature: Temperature of the votes' weights. Defaults to 0.07.
        num_bank: Number of images that only vote. Defaults to None.
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
        self.num_neighbors = num_neighbors
        self.temperature = temperature
        self.num_bank = num_bank

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Accuracy in percent, like MMPretrain's metrics.

        Args:
            results: Feature and label of every image, in the order of the dataset.

        Returns:
            ``top1``.

        Raises:
            ValueError: An image has no label, or there are too few.
        """
        if any(label is None for _, label in results):
            raise ValueError('KNNMetric needs labeled images: give val_dataloader.dataset one label for each')
        self._check_sizes(len(results))
        features, labels = torch.stack([feature for feature, _ in results]), torch.tensor([each for _, each in results])
        if self.num_bank is None:
            cosines, rows = _neighbors_but_itself(features, self.num_neighbors)
            truth = labels
        else:
            bank, queries = features[: self.num_bank], features[self.num_bank :]
            cosines, rows = nearest_neighbors(queries, bank, self.num_neighbors)
            truth = labels[self.num_bank :]
        k, num_classes = self.num_neighbors, int(labels.max()) + 1
        votes = neighbor_votes(cosines, labels[rows], [k], self.temperature, num_classes)[k]
        return dict(top1=100 * float((votes.argmax(1) == truth).float().mean()))

    def _check_sizes(self, total: int) -> None:
        voters = total - 1 if self.num_bank is None else self.num_bank
        if self.num_bank is not None and self.num_bank >= total:
            raise ValueError(
                f'KNNMetric: num_bank={self.num_bank} of {total} images leaves none to classify: concatenate bank and '
                'queries in val_dataloader.dataset, or leave num_bank out'
            )
        if self.num_neighbors > voters:
            raise ValueError(
                f'KNNMetric: num_neighbors={self.num_neighbors}, but only {voters} of {total} images vote: lower it'
            )


@METRICS.register_module()
class RankMetric(_FeatureMetric):
    """RankMe, and effective rank of the centered features; labels are not needed."""

    default_prefix = 'rank'

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Rank of the features of all images.

        Args:
            results: Feature and label of every image.

        Returns:
            ``rankme`` and ``effective_rank``.
        """
        features = torch.stack([feature for feature, _ in results])
        return dict(rankme=rankme(features), effective_rank=effective_rank(features - features.mean(0)))


def _neighbors_but_itself(features: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    cosines, rows = nearest_neighbors(features, features, num_neighbors + 1)
    # Among duplicates, the image itself may be missing from its neighbors; then the last neighbor is dropped.
    others = (rows != torch.arange(len(rows))[:, None]).int()
    order = others.argsort(dim=1, descending=True, stable=True)[:, :num_neighbors]
    return cosines.gather(1, order), rows.gather(1, order)
