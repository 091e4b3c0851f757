"""Silhouettes of clusters."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot


def cosine_silhouette(features: Tensor, labels: Tensor) -> Tensor:
    """Compute the silhouette of every sample by cosine distance (Rousseeuw, 1987).

    ``(b - a) / max(a, b)``, with the mean distance a to the other samples of the same cluster and the smallest mean
    distance b to another cluster. As a sum of cosines is one product with the sum of unit vectors, the matrix of all
    distances is not needed: N C D operations instead of N^2 D.

    Args:
        features: Features, (N, D), of any length except 0.
        labels: Cluster of every sample, int64, (N,), in [0, C).

    Returns:
        Silhouettes in [-1, 1], fp64, (N,); 0 for the only sample of a cluster.

    Raises:
        ValueError: There are fewer than 2 clusters, or the shapes do not fit.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f'{tuple(labels.shape)} labels do not match features {tuple(features.shape)}')
    labels = labels.unique(return_inverse=True)[1]
    rows, members = normalize(features.double(), dim=1), one_hot(labels).double()
    counts = members.sum(0)
    if len(counts) < 2:
        raise ValueError('silhouettes need at least 2 clusters')
    cosines = rows @ (members.T @ rows).T
    sizes = counts[labels]
    within = (sizes - cosines.gather(1, labels[:, None])[:, 0]) / (sizes - 1).clamp_min(1)
    to_others = (1 - cosines / counts).scatter(1, labels[:, None], torch.inf).amin(1)
    silhouettes = (to_others - within) / torch.maximum(within, to_others).clamp_min(torch.finfo(rows.dtype).tiny)
    return silhouettes.where(sizes > 1, 0.0)
