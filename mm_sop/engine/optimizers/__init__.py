"""Optimizers, their wrapper and its constructor."""

from mm_sop.engine.optimizers.constructors import LayerDecayOptimWrapperConstructor, PretrainOptimWrapperConstructor
from mm_sop.engine.optimizers.lars import FastLARS
from mm_sop.engine.optimizers.pretrain_optim_wrapper import NonFiniteLossError, PretrainOptimWrapper

__all__ = [
    'FastLARS',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteLossError',
    'PretrainOptimWrapper',
    'PretrainOptimWrapperConstructor',
]
