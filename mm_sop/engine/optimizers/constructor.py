"""Parameter groups: which parameters are trained, and which of them decay."""

import inspect

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIMIZERS
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class PretrainOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Two parameter groups: biases and one-dimensional tensors without weight decay, and all others with it.

    This is the rule of DINO, iBOT and SOP; class token, position and mask embeddings decay. Frozen parameters such
    as the teacher's are excluded. MMEngine makes a group per parameter; with two groups, fused optimizers update the
    network in two launches. Fused kernels are used if the optimizer has them.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper with ``optimizer``.
        paramwise_cfg (dict, optional): Must be None: for other rules use MMEngine's DefaultOptimWrapperConstructor.

    Raises:
        ValueError: ``paramwise_cfg`` is given.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        if paramwise_cfg:
            raise ValueError(
                'PretrainOptimWrapperConstructor has fixed rules and takes no paramwise_cfg: set '
                "optim_wrapper.constructor='DefaultOptimWrapperConstructor' to use it"
            )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build optimizer and wrapper for a model.

        Args:
            model: The model, wrapped or not.

        Returns:
            The optimizer wrapper.
        """
        options = dict(self.optimizer_cfg)
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            optimizer_class = registry.get(options['type'])
        if 'fused' in inspect.signature(optimizer_class).parameters:
            options.setdefault('fused', True)
        optimizer = OPTIMIZERS.build(dict(options, params=parameter_groups(model)))
        wrapper = dict(self.optim_wrapper_cfg)
        wrapper.setdefault('type', 'PretrainOptimWrapper')
        return OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=optimizer))


def parameter_groups(model: nn.Module) -> list[dict]:
    """Split the trainable parameters by whether weight decay applies.

    Args:
        model: The model.

    Returns:
        Groups for an optimizer: the decaying parameters, then the others with ``weight_decay=0``.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decays = [parameter for name, parameter in trained if parameter.ndim > 1 and not name.endswith('.bias')]
    others = [parameter for name, parameter in trained if parameter.ndim <= 1 or name.endswith('.bias')]
    groups: list[dict] = [dict(params=decays), dict(params=others, weight_decay=0.0)]
    return [group for group in groups if group['params']]
