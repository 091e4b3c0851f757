"""Training engine: loop, hooks, optimisers and checkpoints."""

from . import atomic, checkpoint_loader, hooks, optimizers
from .loops import PretrainLoop
from .pretrained import PretrainedBackbone

__all__ = ['PretrainLoop', 'PretrainedBackbone', 'atomic', 'hooks', 'optimizers']

checkpoint_loader.install()
