"""k-nearest-neighbor evaluation of a network on datasets."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import get_comm_device, get_dist_info
from mmpretrain.registry import DATASETS
from torch import Tensor

from mm_sop.datasets.labeled.folders import check_classes
from mm_sop.evaluation.features.extraction import extract_features, gather_features
from mm_sop.evaluation.labeled_data import read_labels
from mm_sop.evaluation.standard_errors import binomial_standard_error, clustered_standard_error, count_by_cluster
from mm_sop.functional.knn import neighbor_votes
from mm_sop.functional.neighbors import merge_neighbors, nearest_neighbors
from mm_sop.utils.distributed import gather_in_sample_order

# Queries whose candidates are exchanged between the processes at once.
_MERGE_BLOCK = 4096


class KNNEvaluator:
    """Classification of query images by their nearest images in a labeled bank.

    Every process holds and searches a part of the bank, and the nearest images of all parts are merged. One search
    serves all labels and numbers of neighbors. A label that no query shares with the bank, such as the identity of
    unseen objects, is left out.

    Args:
        bank: Labeled dataset that votes, or its config.
        queries: Datasets to classify, or their configs, by name.
        labels: What to classify: ``'class'`` is the dataset's ``gt_label``, other names are those of annotations, for
            instance ``'identity'``.
        num_neighbors: Number k of neighbors that vote, or several such numbers.
        temperature: Temperature of the votes' weights.
        batch_size: Images encoded at once by one process.
        metric: One of :data:`mm_sop.functional.neighbors.METRICS`.

    Raises:
        ValueError: The datasets have different classes or lack labels, or the bank is smaller than k.
    """

    def __init__(
        self,
        bank: dict | BaseDataset,
        queries: dict[str, dict | BaseDataset],
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
        self.temperature, self.metric = temperature, metric
        self.loading = dict(batch_size=batch_size, num_workers=num_workers)
        if max(self.num_neighbors) > len(self.bank):
            raise ValueError(
                f'num_neighbors={max(self.num_neighbors)} is more than the {len(self.bank)} images of the bank: '
                'lower it'
            )
        check_classes({'bank': self.bank, **{f'queries {name!r}': each for name, each in self.queries.items()}})
        self.bank_labels = {label: read_labels(self.bank, label) for label in labels}
        self.query_labels = {
            name: {label: read_labels(dataset, label) for label in labels} for name, dataset in self.queries.items()
        }
        self.query_identities = {name: read_labels(dataset, 'identity') for name, dataset in self.queries.items()}
        self.bank_identities = read_labels(self.bank, 'identity')
        if not any(self._is_answerable(name, label) for name in self.queries for label in labels):
            raise ValueError(f'no query shares any of the labels {tuple(labels)} with the bank: check the datasets')

    def evaluate(self, encode: Callable[[dict], dict[str, Tensor]]) -> dict[str, dict[str, dict]]:
        """Measure the accuracy of features that ``encode`` gives by name for a batch, see :func:`network_encoder`.

        Returns:
            For every name of features, scores by ``<query>_<label>_k<k>``: each with ``accuracy`` and
            ``standard_error`` in [0, 1], ``binomial_standard_error``, ``chance`` and ``num_images``. If the identities
            of the objects are known also ``clustered_standard_error``, ``num_identities``, ``right_by_identity`` and
            ``images_by_identity``. The standard error is the clustered one if the queries show objects that are not in
            the bank, else the binomial one.
        """
        rank, world_size = get_dist_info()

        def extract(dataset: BaseDataset) -> dict[str, Tensor]:
            features = extract_features(encode, dataset, rank=rank, world_size=world_size, **self.loading)
            if world_size == 1:
                return features
            # Baselines come from the CPU, which NCCL cannot read.
            return {name: each.to(get_comm_device()) for name, each in features.items()}

        scores: dict[str, dict[str, dict]] = {}
        for query, name, similarities, rows in self.search(extract):
            scores.setdefault(name, {}).update(self.score(query, similarities, rows))
        return scores

    def search(self, extract: Callable[[BaseDataset], dict[str, Tensor]]) -> Iterator[tuple[str, str, Tensor, Tensor]]:
        """Find the nearest images of the bank for every query set and kind of features.

        ``extract`` gives the named features of this process's images of a dataset, see :func:`extract_features`.

        Yields:
            Name of the query set, name of the features, similarities in falling order, (n, k), and rows in the bank,
            (n, k), on the CPU of every process.
        """
        bank = extract(self.bank)
        for query, dataset in self.queries.items():
            for name, features in extract(dataset).items():
                similarities, rows = self._search(gather_features(features, len(dataset)), bank[name])
                yield query, name, similarities.cpu(), rows.cpu()

    def _search(self, queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest rows of the whole bank; process r of W holds its rows r, r + W, r + 2 W, ..."""
        rank, world_size = get_dist_info()
        wanted = max(self.num_neighbors)
        if world_size == 1:
            return nearest_neighbors(queries, bank, wanted, self.metric)
        num_found = min(wanted, len(bank))
        local_similarities, local_rows = nearest_neighbors(queries, bank, num_found, self.metric)
        # All processes contribute equally many candidates; missing ones are farther than any row.
        similarities = local_similarities.new_full((len(queries), wanted), -torch.inf)
        rows = torch.full((len(queries), wanted), len(self.bank), device=queries.device)
        similarities[:, :num_found], rows[:, :num_found] = local_similarities, local_rows * world_size + rank
        merged = []
        for block in zip(similarities.split(_MERGE_BLOCK), rows.split(_MERGE_BLOCK), strict=True):
            # Gathering joins the first dimension, which is that of the candidates here: (k, n) -> (W k, n).
            candidates, candidate_rows = (gather_in_sample_order(each.T).T for each in block)
            merged.append(merge_neighbors(candidates, candidate_rows, wanted))
        similarities, rows = (torch.cat(parts) for parts in zip(*merged, strict=True))
        return similarities, rows

    def score(self, query: str, similarities: Tensor, rows: Tensor) -> dict[str, dict]:
        """Compute the scores of one query set from what :meth:`search` yields."""
        scores: dict[str, dict] = {}
        for label, bank_labels in self.bank_labels.items():
            if bank_labels is None or not self._is_answerable(query, label):
                continue
            truth = self.query_labels[query][label]
            names, compact = np.unique(bank_labels, return_inverse=True)
            neighbors = torch.from_numpy(compact)[rows]
            votes = neighbor_votes(similarities, neighbors, self.num_neighbors, self.temperature, len(names))
            for k, result in votes.items():
                correct = names[result.argmax(1).numpy()] == truth
                scores[f'{query}_{label}_k{k}'] = self._summarize(query, correct, 1 / len(names))
        return scores

    def _summarize(self, query: str, correct: np.ndarray, chance: float) -> dict:
        accuracy, identities = float(correct.mean()), self.query_identities[query]
        binomial = binomial_standard_error(accuracy, len(correct))
        summary = dict(accuracy=accuracy, standard_error=binomial, binomial_standard_error=binomial, chance=chance)
        summary['num_images'] = len(correct)
        if identities is None:
            return summary
        right, sizes = count_by_cluster(correct, identities)
        clustered = clustered_standard_error(right, sizes)
        if self.bank_identities is not None and not np.isin(identities, self.bank_identities).any():
            summary['standard_error'] = clustered
        summary.update(clustered_standard_error=clustered, num_identities=len(sizes))
        return dict(summary, right_by_identity=right.tolist(), images_by_identity=sizes.tolist())

    def _is_answerable(self, query: str, label: str) -> bool:
        wanted, known = self.query_labels[query][label], self.bank_labels[label]
        return wanted is not None and known is not None and bool(np.isin(wanted, known).any())


def _build(dataset: dict | BaseDataset) -> BaseDataset:
    return DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
