"""k-nearest-neighbour evaluation of a network on data sets."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from mmengine.dist import get_comm_device, get_dist_info
from mmpretrain.registry import DATASETS
from torch import Tensor
from torch.utils.data import Dataset

from mm_sop.datasets.labelled_images import check_classes
from mm_sop.evaluation.features import extract_features, gather_features
from mm_sop.evaluation.uncertainty import binomial_standard_error, clustered_standard_error, count_by_cluster
from mm_sop.functional.knn import merge_neighbors, nearest_neighbors, neighbor_votes
from mm_sop.models.utils.distributed import gather_in_sample_order

# Queries whose candidates are exchanged between the processes at once.
_MERGE_BLOCK = 4096


class KNNEvaluator:
    """Classifies query pictures by their nearest pictures in a labelled bank.

    The bank is shared between the processes: each searches its own part, and the nearest of all parts are merged, so
    that a bank of any size costs every process only its share. One search serves all labels and numbers of neighbours.

    A label that no query shares with the bank, such as the identity of unseen objects, is left out.

    Args:
        bank: Config of the labelled data set that votes, or the data set.
        queries: Configs of the data sets to classify, or the data sets, by name.
        labels: What to classify: ``'class'`` is the data set's ``gt_label``, other names are those of the annotation,
            for instance ``'identity'``.
        num_neighbors: Number k of neighbours that vote, or several such numbers.
        temperature: Temperature of the votes' weights.
        batch_size: Pictures encoded at once by one process.
        num_workers: Worker processes that load pictures.
        metric: One of :data:`mm_sop.functional.knn.METRICS`.

    Raises:
        ValueError: If the data sets disagree on the classes or lack labels, or the bank is smaller than k.
    """

    def __init__(
        self,
        bank: dict | Dataset,
        queries: dict[str, dict | Dataset],
        labels: Sequence[str] = ('class', 'identity'),
        num_neighbors: int | Sequence[int] = 20,
        temperature: float = 0.07,
        batch_size: int = 256,
        num_workers: int = 0,
        metric: str = 'cosine',
    ) -> None:
        self.bank = _build(bank)
        self.queries = {name: _build(dataset) for name, dataset in queries.items()}
        self.num_neighbors = [num_neighbors] if isinstance(num_neighbors, int) else sorted(num_neighbors)
        self.temperature = temperature
        self.metric = metric
        self.loading = dict(batch_size=batch_size, num_workers=num_workers)
        self._check_data()
        self.bank_labels = {label: read_labels(self.bank, label) for label in labels}
        self.query_labels = {
            name: {label: read_labels(dataset, label) for label in labels} for name, dataset in self.queries.items()
        }
        self.query_identities = {name: read_labels(dataset, 'identity') for name, dataset in self.queries.items()}
        self.bank_identities = read_labels(self.bank, 'identity')
        if not any(self._is_answerable(name, label) for name in self.queries for label in labels):
            raise ValueError(f'no query shares any of the labels {tuple(labels)} with the bank: check the data sets')

    def evaluate(self, encode: Callable[[dict], dict[str, Tensor]]) -> dict[str, dict[str, dict]]:
        """Measure the accuracy of features.

        Args:
            encode: Maps a collated batch to named features, for instance :func:`network_encoder`.

        Returns:
            For every name of features, scores by ``<query>_<label>_k<k>``: each with ``accuracy`` and
            ``standard_error`` in [0, 1], ``binomial_standard_error``, ``chance`` and ``num_pictures``. Where the
            identities of the objects are known also ``clustered_standard_error``, ``num_identities``,
            ``right_by_identity`` and ``pictures_by_identity``. The standard error is the clustered one where the
            queries show objects that are not in the bank, and else the binomial one.
        """
        bank = self.extract(encode, self.bank)
        scores = {name: {} for name in bank}
        for query, dataset in self.queries.items():
            for name, share in self.extract(encode, dataset).items():
                features = gather_features(share, len(dataset))
                cosines, rows = self._search(features, bank[name])
                scores[name].update(self.score(query, cosines.cpu(), rows.cpu()))
        return scores

    def extract(self, encode: Callable, dataset: Dataset) -> dict[str, Tensor]:
        """Features of this process's share, see :func:`extract_features`.

        Args:
            encode: As for :meth:`evaluate`.
            dataset: Bank or queries.
        """
        rank, world_size = get_dist_info()
        features = extract_features(encode, dataset, rank=rank, world_size=world_size, **self.loading)
        if world_size == 1:
            return features
        # Baselines come from the CPU, which NCCL cannot read.
        return {name: share.to(get_comm_device()) for name, share in features.items()}

    def _search(self, queries: Tensor, bank_share: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest rows of the whole bank; process r of W holds its rows r, r + W, r + 2 W, ..."""
        rank, world_size = get_dist_info()
        wanted = max(self.num_neighbors)
        if world_size == 1:
            return nearest_neighbors(queries, bank_share, wanted, self.metric)
        found = min(wanted, len(bank_share))
        own_cosines, own_rows = nearest_neighbors(queries, bank_share, found, self.metric)
        # All processes contribute equally many candidates; missing ones are farther than any row.
        cosines = own_cosines.new_full((len(queries), wanted), -torch.inf)
        rows = torch.full((len(queries), wanted), len(self.bank), device=queries.device)
        cosines[:, :found], rows[:, :found] = own_cosines, own_rows * world_size + rank
        blocks = zip(cosines.split(_MERGE_BLOCK), rows.split(_MERGE_BLOCK), strict=True)
        cosines, rows = zip(*[self._merge(*block) for block in blocks], strict=True)
        return torch.cat(cosines), torch.cat(rows)

    def _merge(self, cosines: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        # Candidates lead, because gathering joins the leading dimension.
        cosines, rows = gather_in_sample_order(cosines.T), gather_in_sample_order(rows.T)
        return merge_neighbors(cosines.T, rows.T, max(self.num_neighbors))

    def score(self, query: str, cosines: Tensor, rows: Tensor) -> dict[str, dict]:
        """Scores of one query set.

        Args:
            query: Its name.
            cosines: Cosines of the nearest pictures of the bank in falling order, (n, k), or other likenesses.
            rows: Their rows in the bank, (n, k).
        """
        scores = {}
        for label, bank_labels in self.bank_labels.items():
            if not self._is_answerable(query, label):
                continue
            truth = self.query_labels[query][label]
            names, compact = np.unique(bank_labels, return_inverse=True)
            neighbors = torch.from_numpy(compact)[rows]
            votes = neighbor_votes(cosines, neighbors, self.num_neighbors, self.temperature, len(names))
            for k, result in votes.items():
                correct = names[result.argmax(1).numpy()] == truth
                scores[f'{query}_{label}_k{k}'] = self._summarize(query, correct, 1 / len(names))
        return scores

    def _summarize(self, query: str, correct: np.ndarray, chance: float) -> dict:
        accuracy, identities = float(correct.mean()), self.query_identities[query]
        binomial = binomial_standard_error(accuracy, len(correct))
        summary = dict(
            accuracy=accuracy,
            standard_error=binomial,
            binomial_standard_error=binomial,
            chance=chance,
            num_pictures=len(correct),
        )
        if identities is None:
            return summary
        right, sizes = count_by_cluster(correct, identities)
        clustered = clustered_standard_error(right, sizes)
        if self.bank_identities is not None and not np.isin(identities, self.bank_identities).any():
            summary['standard_error'] = clustered
        return dict(
            summary,
            clustered_standard_error=clustered,
            num_identities=len(sizes),
            right_by_identity=right.tolist(),
            pictures_by_identity=sizes.tolist(),
        )

    def _is_answerable(self, query: str, label: str) -> bool:
        asked, known = self.query_labels[query][label], self.bank_labels[label]
        return asked is not None and known is not None and bool(np.isin(asked, known).any())

    def _check_data(self) -> None:
        if max(self.num_neighbors) > len(self.bank):
            raise ValueError(
                f'num_neighbors={max(self.num_neighbors)} is more than the {len(self.bank)} pictures of '
                'the bank: lower it'
            )
        check_classes({'bank': self.bank, **{f'queries {name!r}': each for name, each in self.queries.items()}})


def read_labels(dataset: Dataset, label: str, rows: Iterable[int] | None = None) -> np.ndarray | None:
    """Read a label from the annotations, without loading a picture.

    Args:
        dataset: Data set with ``get_data_info``.
        label: ``'class'`` for ``gt_label``, or the name of another integer annotation.
        rows: Samples to read. Defaults to None, all.

    Returns:
        Labels, int64, (N,), or None if some sample has none.

    Raises:
        ValueError: If a label is not a single number.
    """
    key = 'gt_label' if label == 'class' else label
    values = []
    for row in range(len(dataset)) if rows is None else rows:
        values.append(dataset.get_data_info(int(row)).get(key))
        if values[-1] is None:
            return None
    labels = np.asarray(values)
    if labels.ndim != 1 or labels.dtype.kind not in 'iu':
        raise ValueError(f'k-NN needs one integer per picture as {key!r}, got {values[0]!r}')
    return labels.astype(np.int64)


def _build(dataset: dict | Dataset) -> Dataset:
    return DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
