"""Freezes learned prototypes while the rest of a network warms up."""

from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from mm_sop.engine.hooks.base import PretrainHook
from mm_sop.utils.modules import unwrap_model


@HOOKS.register_module()
class FreezePrototypesHook(PretrainHook):
    """Removes the gradients of the prototypes before every step of the first epochs (DINO, ``freeze_last_layer``).

    An optimizer skips parameters without a gradient: weight decay does not apply either, and no momentum accumulates.
    The parameters still take part in the backward pass, as DistributedDataParallel requires.

    Args:
        epochs (float): Length in epochs, not negative. Defaults to 1.
        module (str): Name of the modules that contain the prototypes, at any depth. Defaults to ``'prototypes'``.

    Raises:
        ValueError: The model has no such parameters.
    """

    def __init__(self, epochs: float = 1, module: str = 'prototypes') -> None:
        if epochs < 0:
            raise ValueError(f'epochs must not be negative, got {epochs}')
        self.epochs = epochs
        self.module = module
        self._handle: RemovableHandle | None = None

    def before_train(self, runner: Runner) -> None:
        model = unwrap_model(runner.model)
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        parameters = [parameter for name, parameter in trained if self.module in name.split('.')]
        if not parameters:
            raise ValueError(f'no module called {self.module!r} with trained parameters in {type(model).__name__}')
        duration = round(self.epochs * len(runner.train_dataloader))

        def remove_gradients(optimizer: Optimizer, args, kwargs) -> None:
            if runner.iter < duration:
                for parameter in parameters:
                    parameter.grad = None

        self._handle = runner.optim_wrapper.optimizer.register_step_pre_hook(remove_gradients)

    def release(self, runner: Runner) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
