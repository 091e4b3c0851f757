"""Many linear classifiers on the same features, trained in one go."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear


@dataclass(frozen=True)
class HeadSettings:
    """How one classifier is trained.

    Attributes:
        lr: Learning rate for a batch of 256.
        weight_decay: Weight decay of weights and bias.
        optimizer: ``'sgd'`` or ``'lars'``, both with momentum.
    """

    lr: float
    weight_decay: float = 0.0
    optimizer: str = 'sgd'


class LinearGrid:
    """Linear classifiers that differ in how they are trained, as one tensor.

    All classifiers see the same batches. A step is one matrix product for the logits of all, one for the gradients of
    all, and one update of all: that of :class:`torch.optim.SGD` or of :class:`FastLARS` for each. The gradient of the
    cross-entropy is written out.

    Args:
        dim: Width D of the features.
        num_classes: Number C of classes.
        heads: Settings of the H classifiers.
        momentum: Momentum of the updates.
        eta: Trust coefficient of LARS.
        generator: Source of the initial weights, of deviation 0.01 and equal for all; biases are 0.
        device: Where the classifiers live.

    Attributes:
        weight: Weights, (H, C, D).
        bias: Biases, (H, C).

    Raises:
        ValueError: There are no heads, or one has an unknown optimiser.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        heads: Sequence[HeadSettings],
        momentum: float = 0.9,
        eta: float = 0.001,
        generator: torch.Generator | None = None,
        device: torch.device | str = 'cpu',
    ) -> None:
        unknown = {head.optimizer for head in heads} - {'sgd', 'lars'}
        if unknown or not heads:
            raise ValueError(f"a grid needs heads with optimizer 'sgd' or 'lars', got {sorted(unknown) or 'no heads'}")
        self.heads = list(heads)
        self.momentum, self.eta = momentum, eta
        weight = 0.01 * torch.randn(num_classes, dim, generator=generator)
        self.weight = weight.to(device).repeat(len(heads), 1, 1)
        self.bias = torch.zeros(len(heads), num_classes, device=device)
        self.velocities = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]
        self._lr = torch.tensor([head.lr for head in heads], device=device)
        self._decay = torch.tensor([head.weight_decay for head in heads], device=device)
        self._is_lars = torch.tensor([head.optimizer == 'lars' for head in heads], device=device)

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Logits of all classifiers.

        Args:
            features: Features, (B, D).

        Returns:
            Logits, (B, H, C).
        """
        return linear(features, self.weight.flatten(0, 1), self.bias.flatten()).unflatten(1, self.bias.shape)

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor, lr_factor: float = 1.0) -> None:
        """Train all classifiers on a batch.

        Args:
            features: Features, (B, D).
            labels: Classes, int64, (B,).
            lr_factor: What all learning rates are multiplied with.
        """
        errors = self.logits(features).softmax(2)
        errors[torch.arange(len(labels), device=labels.device), :, labels] -= 1
        errors /= len(labels)
        lr = lr_factor * self._lr
        self._update(self.weight, self.velocities[0], errors, features, lr, self._trust_ratio(errors, features) * lr)
        ones = features.new_ones(len(features), 1)
        self._update(self.bias[..., None], self.velocities[1][..., None], errors, ones, lr, lr)

    def correct(self, features: Tensor, labels: Tensor) -> Tensor:
        """Which predictions are right, bool, (B, H)."""
        return self.logits(features).argmax(2) == labels[:, None]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that training changes."""
        return dict(weight=self.weight, bias=self.bias, velocity0=self.velocities[0], velocity1=self.velocities[1])

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

    def _trust_ratio(self, errors: Tensor, features: Tensor) -> Tensor:
        weight_norm = self.weight.flatten(1).norm(dim=1)
        # |E^T X|^2 is the sum of EE^T * XX^T, so that the gradient itself is never written to memory.
        by_head = errors.transpose(0, 1)
        grad_norm = ((by_head @ by_head.mT) * (features @ features.T)).sum((1, 2)).clamp(min=0).sqrt()
        trust = self.eta * weight_norm / (grad_norm + self._decay * weight_norm + 1e-8)
        return trust.where((weight_norm > 0) & (grad_norm > 0), 1.0)

    def _update(
        self, parameter: Tensor, velocity: Tensor, errors: Tensor, inputs: Tensor, lr: Tensor, lars_rate: Tensor
    ) -> None:
        # SGD multiplies the velocity with the learning rate, LARS what enters it.
        entering, leaving = lars_rate.where(self._is_lars, 1.0), torch.ones_like(lr).where(self._is_lars, lr)
        scaled = (errors * entering[:, None]).flatten(1)
        velocity.flatten(0, 1).addmm_(scaled.T, inputs, beta=self.momentum)
        velocity.addcmul_(parameter, (entering * self._decay)[:, None, None])
        parameter.addcmul_(velocity, leaving[:, None, None], value=-1)


def cosine_factor(step: int, total: int) -> float:
    """Cosine schedule from 1 to 0.

    Args:
        step: Number of the step, from 0.
        total: Number of steps.
    """
    return 0.5 * (1 + math.cos(math.pi * step / total))
