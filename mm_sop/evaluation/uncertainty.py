"""Standard errors of accuracies."""

import math

import numpy as np

# Largest block of bootstrap samples by clusters that is held at once, in elements.
_DRAW_BLOCK = 2**22


def binomial_standard_error(accuracy: float, count: int) -> float:
    """Standard error of the share of right answers if all pictures are independent.

    Args:
        accuracy: Share of right answers, in [0, 1].
        count: Number of pictures, at least 1.
    """
    return math.sqrt(accuracy * (1 - accuracy) / count)


def standard_error(correct: np.ndarray, clusters: np.ndarray | None = None) -> float:
    """Standard error of an accuracy: clustered where the clusters are known, else binomial.

    Args:
        correct: Whether each answer was right, bool, (n,).
        clusters: Object shown in each picture, int, (n,), or None.
    """
    if clusters is None:
        return binomial_standard_error(float(correct.mean()), len(correct))
    return clustered_standard_error(*count_by_cluster(correct, clusters))


def count_by_cluster(correct: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and pictures of every cluster, in the order of their numbers.

    Args:
        correct: Whether the answer was right, bool, (n,).
        clusters: Object shown in each picture, int, (n,).

    Returns:
        Two vectors over the clusters, int64.
    """
    _, members = np.unique(clusters, return_inverse=True)
    return np.bincount(members, weights=correct).astype(np.int64), np.bincount(members)


def clustered_standard_error(right: np.ndarray, sizes: np.ndarray, repeats: int = 2000, seed: int = 0) -> float:
    """Bootstrap standard error of an accuracy, resampling whole clusters with replacement.

    Pictures of one object are right or wrong together. What an accuracy says about objects never seen before is
    therefore limited by the number of objects, not of pictures. Given the difference of two methods' right answers, the
    result is the standard error of their paired difference, in which the difficulty of an object cancels.

    Args:
        right: Right answers of every cluster, or a difference of such, (c,).
        sizes: Pictures of every cluster, (c,).
        repeats: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        Standard deviation of the accuracy over the bootstrap samples.
    """
    right, sizes = np.asarray(right, dtype=np.float64), np.asarray(sizes)
    chances = np.full(len(sizes), 1 / len(sizes))
    generator = np.random.default_rng(seed)
    accuracies = []
    while len(accuracies) < repeats:
        count = min(repeats - len(accuracies), max(1, _DRAW_BLOCK // len(sizes)))
        draws = generator.multinomial(len(sizes), chances, size=count)
        accuracies.extend((draws @ right) / (draws @ sizes))
    return float(np.std(accuracies, ddof=1))
