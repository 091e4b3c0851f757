"""Standard errors of accuracies."""

import math

import numpy as np

# Largest block of bootstrap samples x clusters in memory, in elements.
_DRAW_BLOCK = 2**22


def binomial_standard_error(accuracy: float, count: int) -> float:
    """Standard error of an accuracy in [0, 1] if all images are independent."""
    return math.sqrt(accuracy * (1 - accuracy) / count)


def standard_error(correct: np.ndarray, clusters: np.ndarray | None = None) -> float:
    """Standard error of an accuracy: clustered by the objects shown in the images if they are known, else binomial.

    Args:
        correct: Whether each answer is right, bool, (n,).
        clusters: Object shown in each image, int, (n,), or None.
    """
    if clusters is None:
        return binomial_standard_error(float(correct.mean()), len(correct))
    return clustered_standard_error(*count_by_cluster(correct, clusters))


def count_by_cluster(correct: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count right answers and images of every cluster, int64, in the order of the cluster labels."""
    _, members = np.unique(clusters, return_inverse=True)
    return np.bincount(members, weights=correct).astype(np.int64), np.bincount(members)


def mean_standard_error(values: np.ndarray, clusters: np.ndarray | None = None) -> float:
    """Standard error of a mean over images, by :func:`clustered_standard_error`; without clusters, each is its own."""
    _, members = np.unique(np.arange(len(values)) if clusters is None else clusters, return_inverse=True)
    return clustered_standard_error(np.bincount(members, weights=values), np.bincount(members))


def clustered_standard_error(right: np.ndarray, sizes: np.ndarray, repeats: int = 2000, seed: int = 0) -> float:
    """Bootstrap standard error of an accuracy, resampling whole clusters with replacement.

    Answers for images of one object are correlated. What an accuracy says about unseen objects is therefore limited by
    the number of objects, not of images. For the difference of two methods' right answers, the result is the standard
    error of their paired difference, in which the difficulty of the objects cancels.

    Args:
        right: Right answers of every cluster, or a difference of two such vectors, (c,).
        sizes: Images of every cluster, (c,).
        repeats: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        Standard deviation of the accuracy over the bootstrap samples.
    """
    right, sizes = np.asarray(right, dtype=np.float64), np.asarray(sizes)
    chances = np.full(len(sizes), 1 / len(sizes))
    generator = np.random.default_rng(seed)
    accuracies: list[float] = []
    while len(accuracies) < repeats:
        count = min(repeats - len(accuracies), max(1, _DRAW_BLOCK // len(sizes)))
        draws = generator.multinomial(len(sizes), chances, size=count)
        accuracies.extend((draws @ right) / (draws @ sizes))
    return float(np.std(accuracies, ddof=1))
