"""Weighted nearest-neighbor classification of features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mm_sop.functional.neighbors import nearest_neighbors


def knn_scores(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    num_neighbors: int | Sequence[int],
    temperature: float = 0.07,
    num_classes: int | None = None,
    metric: str = 'cosine',
) -> dict[int, Tensor]:
    """Classify test features by the weighted votes of their nearest training features.

    The protocol of DINO and iBOT: a neighbor of cosine similarity s votes with weight ``exp(s / temperature)``. One
    search serves every number of neighbors. With ``metric='euclidean'`` and an infinite temperature it is the majority
    vote of the nearest by distance, with ties going to the smallest class.

    Args:
        train_features: Features of the bank, (N, D), of any length.
        train_labels: Classes of the bank, int64, (N,), each in [0, num_classes).
        test_features: Features to classify, (n, D).
        num_neighbors: Number k of neighbors that vote, or several such numbers, each in [1, N].
        temperature: Temperature of the weights, positive.
        num_classes: Number C of classes. Defaults to the largest label of the bank plus one.
        metric: One of :data:`mm_sop.functional.neighbors.METRICS`.

    Returns:
        Votes for every k, (n, C), in fp32 (fp64 for fp64 features). The prediction is their argmax.

    Raises:
        ValueError: If shapes, labels or ranges do not fit, N is less than k, or a feature is not finite.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> queries = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> votes = knn_scores(bank, torch.tensor([0, 0, 1]), queries, num_neighbors=[1, 3])
        >>> votes[3].argmax(1)
        tensor([0, 1])
    """
    if train_labels.shape != train_features.shape[:1]:
        raise ValueError(f'{tuple(train_labels.shape)} labels do not match {len(train_features)} training features')
    numbers = [int(number) for number in num_neighbors] if isinstance(num_neighbors, Sequence) else [int(num_neighbors)]
    if min(numbers, default=0) < 1 or not len(train_features):
        raise ValueError(f'num_neighbors={min(numbers, default=0)} does not fit a bank of {len(train_features)}')
    num_classes = int(train_labels.max()) + 1 if num_classes is None else num_classes
    similarity, rows = nearest_neighbors(test_features, train_features, max(numbers), metric)
    return neighbor_votes(similarity, train_labels[rows], numbers, temperature, num_classes)


def neighbor_votes(
    cosines: Tensor, labels: Tensor, num_neighbors: Sequence[int], temperature: float, num_classes: int
) -> dict[int, Tensor]:
    """Sum the weighted votes of neighbors for their classes, (n, C) for every number of neighbors.

    Args:
        cosines: Cosines of the neighbors in descending order, (n, m), or other similarities.
        labels: Classes of the neighbors, int64, (n, m), each in [0, num_classes).
        num_neighbors: Numbers k of neighbors that vote, each at most m.
        temperature: Temperature of the weights ``exp(cosine / temperature)``; infinite for equal weights.
        num_classes: Number C of classes.

    Raises:
        ValueError: If a label is out of range, or the temperature is not positive or so small that votes overflow.
    """
    limit = math.log(torch.finfo(cosines.dtype).max) - math.log(cosines.shape[1])
    if not temperature > 1 / limit:
        raise ValueError(
            f'temperature must be above {1 / limit:.4f}, else exp(1 / temperature) overflows; got {temperature}'
        )
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f'labels of the bank must be in [0, {num_classes}), found {int(labels.min())} ... {int(labels.max())}'
        )
    weights = (cosines / temperature).exp()
    votes = {k: weights.new_zeros(len(weights), num_classes) for k in num_neighbors}
    for k, result in votes.items():
        result.scatter_add_(1, labels[:, :k], weights[:, :k])
    return votes
