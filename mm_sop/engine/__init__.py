"""Training engine: loop, hooks, optimisers and checkpoints."""

from . import atomic, hooks, optimizers
from .loops import PretrainLoop

__all__ = ['PretrainLoop', 'atomic', 'hooks', 'optimizers']
