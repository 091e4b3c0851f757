"""Which networks give an image another output when its batch changes."""

from torch import nn


def couples_samples(network: nn.Module) -> bool:
    """Whether the output for a sample depends on the other samples of its batch, in training.

    That is so for BatchNorm of any kind, from PyTorch, MMCV or timm, which all have ``running_var`` (None where they do
    not track it), and for networks of which a module declares it with the attribute ``couples_samples = True``.
    """
    return any(
        hasattr(module, 'running_var') or getattr(module, 'couples_samples', False) for module in network.modules()
    )
