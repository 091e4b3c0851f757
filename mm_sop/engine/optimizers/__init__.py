"""Optimisers, their wrapper and its constructor."""

from .constructor import PretrainOptimWrapperConstructor
from .lars import FastLARS
from .layer_decay import LayerDecayOptimWrapperConstructor
from .pretrain_optim_wrapper import NonFiniteLossError, PretrainOptimWrapper

__all__ = [
    'FastLARS',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteLossError',
    'PretrainOptimWrapper',
    'PretrainOptimWrapperConstructor',
]
