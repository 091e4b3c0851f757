"""Logistic regression on frozen features."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear


def fit_logistic(
    features: Tensor, labels: Tensor, num_classes: int, penalty: float = 1e-5, max_iterations: int = 500
) -> tuple[Tensor, Tensor]:
    """Minimise the mean cross-entropy plus ``penalty / 2 * |W|^2`` by L-BFGS.

    The bias is not penalised. In scikit-learn's terms ``C = 1 / (penalty * n)``.

    Args:
        features: Features, (n, D), best standardised; the type in which is computed.
        labels: Classes, int64, (n,), in [0, num_classes).
        num_classes: Number C of classes.
        penalty: Weight of the penalty, not negative.
        max_iterations: Largest number of iterations.

    Returns:
        Weights, (C, D), and biases, (C,).

    Raises:
        ValueError: The penalty is negative, or the shapes do not fit.
    """
    if penalty < 0 or labels.shape != features.shape[:1]:
        raise ValueError(
            f'expected a penalty of at least 0 and one label per row, got {penalty}, {tuple(features.shape)} features '
            f'and {tuple(labels.shape)} labels'
        )
    weight = features.new_zeros(num_classes, features.shape[1]).requires_grad_()
    bias = features.new_zeros(num_classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iterations, tolerance_grad=1e-6, history_size=10, line_search_fn='strong_wolfe'
    )

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        objective = cross_entropy(linear(features, weight, bias), labels) + penalty / 2 * weight.square().sum()
        objective.backward()
        return objective

    with torch.enable_grad():
        optimizer.step(evaluate)
    return weight.detach(), bias.detach()


def standardize(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Subtract the mean of the training features and divide by their deviation.

    Args:
        train: Training features, (n, D).
        others: Further features, (m, D) each.

    Returns:
        All of them; a dimension that is constant in training is only shifted.
    """
    mean, deviation = train.mean(0), train.std(0, correction=0)
    deviation = deviation.where(deviation > 0, 1.0)
    return [(features - mean) / deviation for features in (train, *others)]
