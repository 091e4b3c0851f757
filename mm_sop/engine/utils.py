"""Small helpers of hooks and launching."""

import re
from collections.abc import Iterator

from mmengine.model import is_model_wrapper
from torch import nn


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside a wrapper such as DistributedDataParallel, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def match_modules(model: nn.Module, pattern: str) -> Iterator[tuple[str, nn.Module]]:
    """Submodules whose dotted name fits a pattern.

    Args:
        model: The model.
        pattern: Name in which ``*`` stands for anything but a dot, e.g. ``backbone.layers.*``.

    Yields:
        Name and module.
    """
    expression = re.compile('[^.]+'.join(map(re.escape, pattern.split('*'))))
    for name, module in model.named_modules():
        if expression.fullmatch(name):
            yield name, module
