"""Training engine: runner, loop, hooks, optimizers and checkpoints."""

from mm_sop.engine import hooks, optimizers
from mm_sop.engine.loops import PretrainLoop
from mm_sop.engine.runner import PretrainRunner

__all__ = ['PretrainLoop', 'PretrainRunner', 'hooks', 'optimizers']
