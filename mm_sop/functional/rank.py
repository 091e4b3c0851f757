"""How many dimensions features use, and how uniformly they cover the sphere."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Largest block of the matrix of distances that is held at once, in bytes.
_DISTANCE_BLOCK = 2**27


def rankme(features: Tensor, epsilon: float = 1e-7) -> float:
    """Smooth rank of features ("RankMe", Garrido et al., 2023, equation 1).

    The exponential of the entropy of ``p_k = s_k / sum(s) + epsilon``, where s are the singular values of the
    uncentered features, (N, D): between 1 and min(N, D), up to epsilon. As published, p does not sum to one. The paper
    uses 25,600 images.

    Raises:
        ValueError: The features are not a matrix, or not finite.

    Example:
        >>> round(rankme(torch.eye(4)), 3)
        4.0
    """
    return _exponential_entropy(singular_values(features), epsilon)


def effective_rank(features: Tensor) -> float:
    """Effective rank ("The effective rank: A measure of effective dimensionality", Roy & Vetterli, 2007).

    The exponential of the entropy of the singular values divided by their sum, in [1, min(N, D)]. Center the columns of
    the features, (N, D), to measure the variation alone.

    Raises:
        ValueError: The features are not a matrix, or not finite.

    Example:
        >>> round(effective_rank(torch.ones(10, 3)), 3)
        1.0
    """
    return _exponential_entropy(singular_values(features), 0.0)


def lidar(embeddings: Tensor, delta: float = 1e-4, epsilon: float = 1e-8) -> float:
    """Smooth rank of the variation between images relative to the variation between their views.

    "LiDAR" (Thilak et al., 2023, equations 3 to 6): every image is a class, whose members are its views. With the
    covariances Sb between the classes and Sw, plus delta I, within them, the eigenvalues of Sw^-1/2 Sb Sw^-1/2 are
    divided by their sum, plus epsilon; the result is the exponential of their entropy. The covariances are unbiased
    estimates, divided by n - 1 and n (q - 1), as in stable-pretraining. The paper uses 1,000 images with 50 views.

    Args:
        embeddings: Embeddings of n images in q views, (n, q, D).
        delta: Added to the diagonal of the covariance within classes.
        epsilon: Added to the normalized eigenvalues.

    Returns:
        Between 1 and min(n - 1, D), up to epsilon.

    Raises:
        ValueError: There are fewer than 2 images or views, or values that are not finite.

    Example:
        >>> embeddings = torch.randn(100, 8, 3, generator=torch.Generator().manual_seed(0))
        >>> 1 <= lidar(embeddings) <= 3.01
        True
    """
    if embeddings.ndim != 3 or min(embeddings.shape[:2]) < 2:
        raise ValueError(f'LiDAR needs (n, q, D) with at least 2 images in 2 views, got {tuple(embeddings.shape)}')
    _check_finite(embeddings)
    centers = embeddings.double().mean(1)
    residuals = (embeddings.double() - centers[:, None]).flatten(0, 1)
    offsets = centers - centers.mean(0)
    degrees = len(residuals) - len(centers)
    within = residuals.T @ residuals / degrees + delta * torch.eye(centers.shape[1]).to(centers)
    # With Sw = L L^T the matrix L^-1 Sb L^-T has the same eigenvalues, the squares of these singular values.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(within), offsets.T, upper=False)
    eigenvalues = torch.linalg.svdvals(whitened).square() / (len(offsets) - 1)
    return _exponential_entropy(eigenvalues, epsilon)


def uniformity(features: Tensor, temperature: float = 2.0) -> float:
    """Logarithm of the mean Gaussian potential over all pairs of different rows.

    "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere" (Wang &
    Isola, 2020, section 4.1.2): ``log mean exp(-t |x - y|^2)``, in [-4 t, 0], on features, (N, D), of any length.
    Smaller is more uniform.

    Raises:
        ValueError: There are fewer than 2 rows, or they are not finite.

    Example:
        >>> round(uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), 3)  # opposite vectors
        -8.0
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f'uniformity needs at least 2 features (N, D), got {tuple(features.shape)}')
    _check_finite(features)
    rows = normalize(features.double(), dim=1)
    block = max(1, _DISTANCE_BLOCK // (8 * len(rows)))
    total = sum((2 * temperature * (part @ rows.T - 1)).exp().sum() for part in rows.split(block))
    # The sum includes every row with itself, at distance 0.
    with_itself = (2 * temperature * (rows.square().sum(1) - 1)).exp().sum()
    return float(((total - with_itself) / (len(rows) * (len(rows) - 1))).log())


def alignment(first: Tensor, second: Tensor, exponent: float = 2.0) -> float:
    """Mean distance ``mean |x - y|^exponent`` of two views on the sphere (Wang & Isola, 2020, section 4.1.1).

    The features of both views, (N, D), may have any length. Smaller is better aligned.

    Raises:
        ValueError: The shapes differ, or features are not finite.

    Example:
        >>> round(alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])), 3)  # orthogonal vectors
        2.0
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f'alignment needs two views (N, D), got {tuple(first.shape)} and {tuple(second.shape)}')
    _check_finite(first, second)
    distances = (normalize(first.double(), dim=1) - normalize(second.double(), dim=1)).norm(dim=1)
    return float(distances.pow(exponent).mean())


def singular_values(features: Tensor) -> Tensor:
    """Singular values of features, (N, D), in descending order, fp64.

    Raises:
        ValueError: The features are not a matrix, or not finite.
    """
    if features.ndim != 2 or not features.numel():
        raise ValueError(f'expected features (N, D), got {tuple(features.shape)}')
    _check_finite(features)
    return torch.linalg.svdvals(features.double())


def _exponential_entropy(values: Tensor, epsilon: float) -> float:
    probabilities = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + epsilon
    return float(torch.special.entr(probabilities).sum().exp())


def _check_finite(*tensors: Tensor) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise ValueError('features are not finite: the network has diverged')
