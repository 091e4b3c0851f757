"""Optimiser wrapper and its constructor."""

from .constructor import PretrainOptimWrapperConstructor
from .pretrain_optim_wrapper import NonFiniteLossError, PretrainOptimWrapper

__all__ = ['NonFiniteLossError', 'PretrainOptimWrapper', 'PretrainOptimWrapperConstructor']
