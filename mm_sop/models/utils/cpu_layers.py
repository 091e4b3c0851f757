"""Layers for training on a CPU."""

import torch
from mmengine.model import Sequential
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_HAS_ONEDNN = torch.backends.mkldnn.is_available()


class TrainingLinear(nn.Linear):
    """Linear layer that in training on a CPU calls oneDNN, which adds the bias within the product.

    PyTorch copies the bias into every row of the output first; for the narrow layers of a small transformer the copy
    takes a third of the time. Results differ by rounding. Evaluation, autocast, other devices and compiled or traced
    programs use PyTorch's own function. The operator has no public name: PyTorch's compiler uses it.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if not (self.training and _trains_on_cpu(features, self.weight)):
            return super().forward(features)
        return _Linear.apply(features, self.weight, self.bias)


class TrainingHiddenLayer(Sequential):
    """Linear layer, GELU and dropout, of which oneDNN computes the first two at once where no gradients are needed."""

    def forward(self, features: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        linear, activation, dropout = self
        is_exact_gelu = isinstance(activation, nn.GELU) and activation.approximate == 'none'
        if torch.is_grad_enabled() or not (self.training and is_exact_gelu and _trains_on_cpu(features, linear.weight)):
            return super().forward(features)
        return dropout(torch.ops.mkldnn._linear_pointwise(features, linear.weight, linear.bias, 'gelu', [], 'none'))


def _trains_on_cpu(features: Tensor, weight: Tensor) -> bool:
    on_cpu = features.device.type == 'cpu' and features.dtype is weight.dtype is torch.float32
    traced = torch.is_autocast_enabled('cpu') or torch.compiler.is_compiling() or torch.jit.is_tracing()
    return _HAS_ONEDNN and on_cpu and not traced


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(features, weight)
        return torch.ops.mkldnn._linear_pointwise(features, weight, bias, 'none', [], '')

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        features, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        needs_features, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            (rows @ weight).view(features.shape) if needs_features else None,
            rows.T @ features.flatten(0, -2) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )
