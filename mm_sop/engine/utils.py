"""Small helpers of hooks and launching."""

import re
from collections.abc import Iterator

from mmengine.dist import broadcast
from mmengine.model import is_model_wrapper
from torch import nn
from torch.utils.data import DataLoader


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside a wrapper such as DistributedDataParallel, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def batch_size_of(loader: DataLoader) -> int:
    """Samples of one batch of this process; a loader with a batch sampler of its own does not know it itself."""
    return loader.batch_size or loader.batch_sampler.batch_size


def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the main one, which are those of the checkpoint.

    Without SyncBN each process has running statistics of its own share of the batches. Processes that evaluate parts
    of a data set would otherwise do so with different networks. Means of all processes, as MMEngine's SyncBuffersHook
    takes them, would be in no checkpoint that was saved before.

    Args:
        model: The model, changed in place on all processes but the main one.
    """
    for buffer in model.buffers():
        broadcast(buffer)


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
