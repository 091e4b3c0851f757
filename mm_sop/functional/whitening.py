"""Whitening of features, and generalized-mean pooling."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Whitening would amplify the noise in directions whose variance is below this fraction of the largest.
_LEAST_VARIANCE = 1e-5


def fit_whitening(features: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the whitening of features, (N, D), normalized here, on images that are not part of the evaluation.

    Returns:
        Mean, (D,), and projection, (D, D), for :func:`whiten`, fp64.

    Raises:
        ValueError: If there are fewer than two features.
    """
    if len(features) < 2:
        raise ValueError(f'whitening is learned from at least two images, got {len(features)}')
    features = normalize(features.double(), dim=1)
    mean = features.mean(0)
    variances, directions = torch.linalg.eigh((features - mean).T @ (features - mean) / len(features))
    # The second bound is for collapsed networks.
    floor = max(_LEAST_VARIANCE * float(variances[-1]), torch.finfo(torch.float32).eps ** 2)
    return mean, directions / variances.clamp(min=floor).sqrt()


def whiten(features: Tensor, mean: Tensor, projection: Tensor) -> Tensor:
    """Whiten features, (n, D), with the results of :func:`fit_whitening`, and normalize them."""
    centered = normalize(features.double(), dim=1) - mean
    return normalize(centered @ projection, dim=1).to(features.dtype)


def generalized_mean(local_map: Tensor, power: float = 4.0) -> Tensor:
    """Generalized mean over the positions of a map, (B, D, h, w) -> (B, D); negative values count as 1e-6."""
    return local_map.clamp(min=1e-6).pow(power).mean((-2, -1)).pow(1 / power)
