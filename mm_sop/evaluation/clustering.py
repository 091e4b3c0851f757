"""How well clusters agree with labels."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize


def k_means(features: Tensor, num_clusters: int, seed: int, restarts: int = 1) -> np.ndarray:
    """Cluster features by direction: k-means (k-means++, Lloyd) on unit rows.

    Args:
        features: Features, (N, D).
        num_clusters: Number of clusters.
        seed: Seed of the starting points.
        restarts: Runs from different starting points, of which the one with the smallest distances counts.

    Returns:
        Cluster of every row, (N,).
    """
    # Its import takes a second, which only this function should cost.
    from sklearn.cluster import KMeans

    rows = normalize(features.float(), dim=1).cpu().numpy()
    return KMeans(num_clusters, n_init=restarts, random_state=seed).fit_predict(rows)


def agreement(labels: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """Compare clusters with labels.

    Args:
        labels: Labels, (N,), of at least two kinds.
        clusters: Clusters, (N,).

    Returns:
        ``accuracy``: share of the samples in the right cluster, when clusters and labels are matched one to one in the
        best way (Hungarian method); ``nmi``: mutual information divided by the mean of both entropies; ``ari``: Rand
        index, adjusted for chance (Hubert & Arabie, 1985). Equal groupings score 1 in all, also where neither divides
        the samples or both divide all of them, which leaves the formulas undefined.
    """
    overlap = _count_pairs(labels, clusters)
    matched = overlap[linear_sum_assignment(overlap, maximize=True)].sum()
    return dict(accuracy=float(matched / len(labels)), nmi=_mutual_information(overlap), ari=_adjusted_rand(overlap))


def _count_pairs(labels: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Samples by label and cluster."""
    label_names, labels = np.unique(labels, return_inverse=True)
    cluster_names, clusters = np.unique(clusters, return_inverse=True)
    overlap = np.zeros((len(label_names), len(cluster_names)), np.int64)
    np.add.at(overlap, (labels, clusters), 1)
    return overlap


def _mutual_information(overlap: np.ndarray) -> float:
    of_labels, of_clusters, of_both = (_entropy(overlap.sum(1)), _entropy(overlap.sum(0)), _entropy(overlap.ravel()))
    if of_labels == of_clusters == 0:
        return 1.0
    return float(2 * (of_labels + of_clusters - of_both) / (of_labels + of_clusters))


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return -(shares * np.log(shares)).sum()


def _adjusted_rand(overlap: np.ndarray) -> float:
    together, by_label, by_cluster = (_pairs(part) for part in (overlap, overlap.sum(1), overlap.sum(0)))
    if together == by_label == by_cluster:
        return 1.0
    expected = by_label * by_cluster / _pairs(overlap.sum())
    return float((together - expected) / ((by_label + by_cluster) / 2 - expected))


def _pairs(counts: np.ndarray) -> float:
    return (counts * (counts - 1) / 2).sum()
