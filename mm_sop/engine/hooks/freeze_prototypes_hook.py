"""Keeps learned prototypes as they are while the rest of a network warms up."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import nn
from torch.optim import Optimizer

from mm_sop.engine.utils import unwrap_model


@HOOKS.register_module()
class FreezePrototypesHook(Hook):
    """Removes the gradients of the prototypes before every step of the first epochs (DINO, ``freeze_last_layer``).

    Without a gradient an optimiser leaves a parameter alone: there is no weight decay either, and no momentum gathers.
    The parameters still take part in the backward pass, as DistributedDataParallel requires.

    Args:
        epochs (float): Length in epochs. Defaults to 1.
        module (str): Name that the modules of the prototypes have, at any depth. Defaults to ``'prototypes'``.

    Raises:
        ValueError: ``epochs`` is negative, or the model has no such parameters.
    """

    def __init__(self, epochs: float = 1, module: str = 'prototypes') -> None:
        if epochs < 0:
            raise ValueError(f'epochs must not be negative, got {epochs}')
        self.epochs = epochs
        self.module = module
        self._handle = None

    def before_train(self, runner: Runner) -> None:
        """Attach to the optimiser."""
        parameters = self._find(unwrap_model(runner.model))
        duration = round(self.epochs * len(runner.train_dataloader))

        def remove_gradients(optimizer: Optimizer, args, kwargs) -> None:
            if runner.iter < duration:
                for parameter in parameters:
                    parameter.grad = None

        self._handle = runner.optim_wrapper.optimizer.register_step_pre_hook(remove_gradients)

    def release(self, runner: Runner) -> None:
        """Detach from the optimiser, however the training ended."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _find(self, model: nn.Module) -> list[nn.Parameter]:
        named = model.named_parameters()
        found = [parameter for name, parameter in named if parameter.requires_grad and self.module in name.split('.')]
        if not found:
            raise ValueError(f'no module called {self.module!r} with trained parameters in {type(model).__name__}')
        return found
