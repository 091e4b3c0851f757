"""Adversarial images."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def pgd_attack(
    classify: Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor,
    epsilon: float,
    step_size: float,
    num_steps: int,
    start: Tensor | None = None,
) -> Tensor:
    """Raise the cross-entropy of the true class by projected gradient descent in the maximum norm (Madry et al.).

    Args:
        classify: Maps images to logits, (B, C), with gradients.
        pixels: Images in [0, 1], (B, 3, H, W).
        labels: True classes, int64, (B,).
        epsilon: Largest change of a pixel.
        step_size: Change of a pixel in one step.
        num_steps: At least 1.
        start: Initial change as a fraction of ``epsilon``, in [-1, 1], (B, 3, H, W). Defaults to no change.

    Returns:
        Images in [0, 1], at most ``epsilon`` from the given ones at every pixel.

    Raises:
        ValueError: A number is out of range.
    """
    if epsilon < 0 or step_size < 0 or num_steps < 1:
        raise ValueError(f'epsilon={epsilon}, step_size={step_size}, num_steps={num_steps}: expected >= 0, >= 0, >= 1')
    low, high = (pixels - epsilon).clamp(0, 1), (pixels + epsilon).clamp(0, 1)
    attacked = pixels if start is None else torch.clamp(pixels + epsilon * start, low, high)
    for _ in range(num_steps):
        attacked = attacked.detach().requires_grad_()
        with torch.enable_grad():
            objective = cross_entropy(classify(attacked), labels, reduction='sum')
        (gradient,) = torch.autograd.grad(objective, attacked)
        attacked = torch.clamp(attacked.detach() + step_size * gradient.sign(), low, high)
    return attacked
