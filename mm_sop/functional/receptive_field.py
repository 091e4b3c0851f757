"""Theoretical receptive field of a convolutional network."""

import math
import warnings
from typing import NamedTuple

from torch import fx, nn


class ReceptiveField(NamedTuple):
    """Region of the input that a cell of a map depends on.

    Attributes:
        size: Side of the field in pixels of the input.
        jump: Distance between the fields of neighboring cells in pixels.
    """

    size: int
    jump: int


_WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_WHOLE_IMAGE_MODULES = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Linear)
_WHOLE_IMAGE_FUNCTIONS = ('mean', 'flatten', 'view', 'reshape', 'adaptive_avg_pool2d', 'adaptive_max_pool2d')
# Operations that map every position to itself. Normalization counts as such: its statistics carry no content.
_POSITIONWISE_MODULES = ('activation', 'batchnorm', 'dropout', 'instancenorm', 'normalization')
_POSITIONWISE_FUNCTIONS = {
    'add', 'iadd', 'sub', 'mul', 'imul', 'truediv', 'div', 'neg', 'clamp', 'cat', 'concat', 'chunk', 'split', 'relu',
    'relu_', 'relu6', 'leaky_relu', 'elu', 'gelu', 'silu', 'hardswish', 'sigmoid', 'hardsigmoid', 'tanh', 'dropout',
    'batch_norm', 'layer_norm', 'group_norm', 'normalize', 'permute', 'contiguous', 'clone', 'detach', 'to', 'float',
    'type', 'getattr', 'size', 'dim', '_assert', 'eq', 'ne', 'lt', 'le', 'gt', 'ge', 'and_', 'or_',
}  # fmt: skip


def receptive_field(module: nn.Module, start: tuple[int, int] = (1, 1)) -> ReceptiveField:
    """Compute the receptive field of the cells of a network's last map from the graph of its forward pass.

    A kernel k with stride s and dilation e turns (size r, jump j) into the size ``r + (k - 1) e j`` and the jump
    ``j s``; where branches meet, the larger field counts. Pooling over the map, reshaping and linear layers see the
    whole image: outputs behind them are ignored.

    Args:
        module: Network of square convolutions, poolings and elementwise operations, whose forward pass does not
            depend on the data (conditions on tensors evaluate to false).
        start: Size and jump of the input's cells, if the network follows another one.

    Raises:
        ValueError: If no output is a map, a window is not square, jumps differ where branches meet, or an operation
            is unknown.
    """
    root = nn.Sequential(module)
    graph, modules = _Tracer().trace(root), dict(root.named_modules())
    fields: dict[fx.Node, ReceptiveField] = {}
    for node in graph.nodes:
        if node.op == 'placeholder':
            fields[node] = ReceptiveField(*start)
        elif node.op == 'output':
            return _last_map([fields[source] for source in node.all_input_nodes if source in fields])
        else:
            inputs = [fields[source] for source in node.all_input_nodes if source in fields]
            if inputs:
                fields[node] = _through(node, _merge(node, inputs), modules)
    raise ValueError(f'{type(module).__name__} has no output')


def check_receptive_field(module: nn.Module, declared: int | None) -> ReceptiveField:
    """Compute the :func:`receptive_field` and compare it with a declared size in pixels; None accepts any.

    Warns if fields are smaller than the jump and leave pixels between them unseen.

    Raises:
        ValueError: If the size differs from the declared one.
    """
    field = receptive_field(module)
    if declared is not None and field.size != declared:
        raise ValueError(
            f'the network has a receptive field of {field.size} pixels (jump {field.jump}), declared are {declared}: '
            'change its kernels, strides, stem or style, or the declaration'
        )
    if field.size < field.jump:
        warnings.warn(
            f'the receptive field of {field.size} pixels is smaller than the jump of {field.jump}: some pixels are '
            'seen by no cell',
            stacklevel=2,
        )
    return field


class _Tracer(fx.Tracer):
    def to_bool(self, obj) -> bool:
        # For instance, activation checkpointing asks whether the input requires a gradient.
        return False


def _merge(node: fx.Node, inputs: list[ReceptiveField]) -> ReceptiveField:
    jumps = {field.jump for field in inputs}
    if len(jumps) > 1:
        raise ValueError(f'branches with jumps {sorted(jumps)} meet at {node.name}')
    return ReceptiveField(max(field.size for field in inputs), jumps.pop())


def _through(node: fx.Node, field: ReceptiveField, modules: dict[str, nn.Module]) -> ReceptiveField:
    if node.op == 'call_module':
        layer = modules[str(node.target)]
        name = type(layer).__name__
        family = type(layer).__module__.rpartition('.')[2]
        known = family in _POSITIONWISE_MODULES and not isinstance(layer, nn.MultiheadAttention)
        keeps_positions = known or isinstance(layer, nn.Identity)
    else:
        layer = None
        name = node.target if isinstance(node.target, str) else getattr(node.target, '__name__', str(node.target))
        keeps_positions = _keeps_positions(node, name)
    if isinstance(layer, _WHOLE_IMAGE_MODULES) or name in _WHOLE_IMAGE_FUNCTIONS:
        return ReceptiveField(math.inf, field.jump)  # type: ignore[arg-type]  # removed by `_last_map`
    if isinstance(layer, _WINDOWS):
        kernel, stride, dilation = (_side(layer, name) for name in ('kernel_size', 'stride', 'dilation'))
        return ReceptiveField(field.size + (kernel - 1) * dilation * field.jump, field.jump * stride)
    if not keeps_positions:
        raise ValueError(f'{name} at {node.name} is not understood: the field behind it is unknown')
    return field


def _keeps_positions(node: fx.Node, name: str) -> bool:
    if name != 'getitem':
        return name in _POSITIONWISE_FUNCTIONS
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    return all(part is ... or part is None or part == slice(None) or isinstance(part, int) for part in index)


def _side(layer: nn.Module, name: str) -> int:
    value = getattr(layer, name, 1)
    sides = set(value) if isinstance(value, tuple) else {value}
    if len(sides) > 1:
        raise ValueError(f'{name} {value} of {type(layer).__name__} is not square')
    return sides.pop()


def _last_map(outputs: list[ReceptiveField]) -> ReceptiveField:
    bounded = [field for field in outputs if field.size < math.inf]
    if not bounded:
        raise ValueError('every output sees the whole image: give a network that ends with a map')
    return bounded[-1]
