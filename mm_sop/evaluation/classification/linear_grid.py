"""Grid of linear classifiers on the same features, trained together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear


@dataclass(frozen=True)
class HeadSettings:
    """Training settings of one classifier.

    Attributes:
        lr: Learning rate, for a batch of 256 if it is scaled with the batch.
        weight_decay: Weight decay of weights and bias; LARS excludes the bias.
        optimizer: ``'sgd'`` or ``'lars'``, both with momentum, or ``'adam'`` in an :class:`AdamGrid`.
    """

    lr: float
    weight_decay: float = 0.0
    optimizer: str = 'sgd'


class LinearGrid:
    """Linear classifiers with different training settings, as one tensor.

    All classifiers see the same batches. A step is one matrix product for the logits of all, one for the gradients of
    all, and one update of all: that of :class:`torch.optim.SGD` or of :class:`FastLARS` for each. The gradient of the
    cross-entropy is computed in closed form.

    Args:
        dim: Width D of the features.
        num_classes: Number C of classes.
        heads: Settings of the H classifiers.
        eta: Trust coefficient of LARS.
        generator: Source of the initial weights, of standard deviation 0.01 and equal for all; biases are 0.

    Attributes:
        weight: Weights, (H, C, D).
        bias: Biases, (H, C).

    Raises:
        ValueError: There are no heads, or one has an unknown optimizer.
    """

    optimizers: tuple[str, ...] = ('sgd', 'lars')

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
        unknown = {head.optimizer for head in heads} - set(self.optimizers)
        if unknown or not heads:
            known = ' or '.join(map(repr, self.optimizers))
            raise ValueError(f'a grid needs heads with optimizer {known}, got {sorted(unknown) or "no heads"}')
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
        """Logits of all classifiers, (B, D) -> (B, H, C)."""
        return linear(features, self.weight.flatten(0, 1), self.bias.flatten()).unflatten(1, self.bias.shape)

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor, lr_factor: float = 1.0) -> None:
        """Train all classifiers on features, (B, D), and their classes, int64, (B,), of a batch."""
        logits = self.logits(features)
        errors = logits.softmax(2)
        errors[torch.arange(len(labels), device=labels.device), :, labels] -= 1
        errors /= len(labels)
        self._update(errors, logits, features, features.new_ones(len(features), 1), lr_factor * self._lr)

    def _update(self, errors: Tensor, logits: Tensor, features: Tensor, ones: Tensor, lr: Tensor) -> None:
        trust = self._trust_ratio(errors, logits, features).where(self._is_lars, 1.0)
        self._follow(self.weight, self.velocities[0], errors * trust[:, None], features, trust * self._decay, lr)
        # LARS applies neither trust ratio nor weight decay to biases.
        bias_decay = self._decay.where(~self._is_lars, 0.0)
        self._follow(self.bias[..., None], self.velocities[1][..., None], errors, ones, bias_decay, lr)

    def correct(self, features: Tensor, labels: Tensor) -> Tensor:
        """Which predictions are right, bool, (B, H)."""
        return self.logits(features).argmax(2) == labels[:, None]

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that training changes."""
        return dict(weight=self.weight, bias=self.bias, velocity0=self.velocities[0], velocity1=self.velocities[1])

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a :meth:`state_dict`."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

    def _trust_ratio(self, errors: Tensor, logits: Tensor, features: Tensor) -> Tensor:
        weight_norm = self.weight.flatten(1).norm(dim=1)
        # |E^T X|^2 is the sum of EE^T * XX^T, and <E^T X, W> that of E * (logits - bias), so that the gradient itself
        # needs no memory.
        by_head = errors.transpose(0, 1)
        grad_square = ((by_head @ by_head.mT) * (features @ features.T)).sum((1, 2)).clamp(min=0)
        inner = (errors * logits).sum((0, 2)) - (errors.sum(0) * self.bias).sum(1)
        decayed = grad_square + 2 * self._decay * inner + (self._decay * weight_norm).square()
        update_norm = decayed.clamp(min=0).sqrt()
        trust = self.eta * weight_norm / update_norm
        return trust.where((weight_norm > 0) & (update_norm > 0), 1.0)

    def _follow(
        self, parameter: Tensor, velocity: Tensor, errors: Tensor, inputs: Tensor, decay: Tensor, lr: Tensor
    ) -> None:
        # (H C, D) += (H C, B) (B, D)
        velocity.flatten(0, 1).addmm_(errors.flatten(1).T, inputs, beta=self.momentum)
        velocity.addcmul_(parameter, decay[:, None, None])
        parameter.addcmul_(velocity, lr[:, None, None], value=-1)


class AdamGrid(LinearGrid):
    """Grid of linear classifiers with the update of :class:`torch.optim.Adam`.

    Args:
        squares: Decay rate of the mean squares; that of the mean gradients is ``momentum``.
        **options: As for :class:`LinearGrid`, like the first arguments.
    """

    optimizers = ('adam',)

    def __init__(
        self, dim: int, num_classes: int, heads: Sequence[HeadSettings], squares: float = 0.999, **options
    ) -> None:
        super().__init__(dim, num_classes, heads, **options)
        self.squares = squares
        self.mean_squares = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]
        self.steps = torch.zeros(())

    def state_dict(self) -> dict[str, Tensor]:
        squares = dict(squares0=self.mean_squares[0], squares1=self.mean_squares[1])
        return dict(super().state_dict(), **squares, steps=self.steps)

    def _update(self, errors: Tensor, logits: Tensor, features: Tensor, ones: Tensor, lr: Tensor) -> None:
        self.steps += 1
        by_class = errors.flatten(1).T
        means, mean_squares = self.velocities, self.mean_squares
        for parameter, mean, squares, inputs in (
            (self.weight, means[0], mean_squares[0], features),
            (self.bias[..., None], means[1][..., None], mean_squares[1][..., None], ones),
        ):
            gradient = (by_class @ inputs).view_as(parameter).addcmul_(parameter, self._decay[:, None, None])
            mean.lerp_(gradient, 1 - self.momentum)
            squares.mul_(self.squares).addcmul_(gradient, gradient, value=1 - self.squares)
            root = (squares / (1 - self.squares ** float(self.steps))).sqrt_().add_(1e-8)
            rate = lr / (1 - self.momentum ** float(self.steps))
            parameter.sub_(rate[:, None, None] * mean / root)


def cosine_factor(step: int, total: int) -> float:
    """Cosine schedule from 1 to 0; ``step`` is zero-based."""
    return 0.5 * (1 + math.cos(math.pi * step / total))


SCHEDULES: dict[str, Callable[[int, int], float]] = dict(
    cosine=cosine_factor,
    # 0.1 after 60 % of the steps and 0.01 after 80 %.
    multistep=lambda step, total: 0.1 ** sum(5 * step >= passed * total for passed in (3, 4)),
    # From 1 to 1e-4.
    exponential=lambda step, total: 1e-4 ** (step / total),
)
"""Learning rate factors by name: functions of step and total number of steps."""
