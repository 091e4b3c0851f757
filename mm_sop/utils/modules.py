"""Helpers for models, their submodules and their data loaders."""

import re
from typing import Any

from mmengine.dist import broadcast
from mmengine.model import is_model_wrapper
from torch import nn
from torch.utils.data import DataLoader


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside a wrapper such as DistributedDataParallel, or the model itself."""
    return model.get_submodule('module') if is_model_wrapper(model) else model


def batch_size_of(loader: DataLoader) -> int:
    """Return the number of samples in a batch of this process, which a given batch sampler decides."""
    sampler: Any = loader.batch_sampler
    return loader.batch_size or sampler.batch_size


def share_buffers(model: nn.Module) -> None:
    """Broadcast the buffers of the main process, which are those of the checkpoint, to all processes.

    Without SyncBN the running statistics of a process come from its shard of each batch. Processes that evaluate shards
    of a dataset would otherwise do so with different networks. Averages over all processes, as MMEngine's
    SyncBuffersHook computes them, would not be in the checkpoints saved before.
    """
    for buffer in model.buffers():
        broadcast(buffer)


def match_modules(model: nn.Module, patterns: list[str], key: str) -> dict[str, nn.Module]:
    """Find submodules by their dotted names, in which ``*`` stands for anything but a dot.

    Raises:
        ValueError: There is none; the message begins with the key of the config.
    """
    expression = '|'.join('[^.]+'.join(map(re.escape, pattern.split('*'))) for pattern in patterns)
    found = {name: module for name, module in model.named_modules() if re.fullmatch(expression, name)}
    if not found:
        raise ValueError(f'{key}: no module of the model is called {patterns[0]!r}')
    return found
