"""Optimisers, their wrapper and its constructor."""

from .constructor import PretrainOptimWrapperConstructor
from .lars import FastLARS
from .pretrain_optim_wrapper import NonFiniteLossError, PretrainOptimWrapper

__all__ = ['FastLARS', 'NonFiniteLossError', 'PretrainOptimWrapper', 'PretrainOptimWrapperConstructor']
