"""Optimiser wrappers."""

from mm_sop.engine.optimizers.pretrain_optim_wrapper import PretrainOptimWrapper

__all__ = ['PretrainOptimWrapper']
