"""Parameter groups: which parameters are trained, which of them decay, and the learning rates of layers."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from mmengine import registry
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD

LayerDepth = Callable[[str], tuple[int, int]]


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
        """Build optimizer and wrapper for a model, wrapped or not."""
        options = dict(self.optimizer_cfg)
        with registry.OPTIMIZERS.switch_scope_and_registry(None) as optimizers:
            optimizer_class = optimizers.get(options['type'])
        groups = parameter_groups(model)
        # PyTorch's fused SGD cannot update sharded tensors.
        excluded = optimizer_class is SGD and isinstance(groups[0]['params'][0], DTensor)
        if 'fused' in inspect.signature(optimizer_class).parameters and not excluded:
            options.setdefault('fused', True)
        optimizer = registry.OPTIMIZERS.build(dict(options, params=groups))
        wrapper = dict(self.optim_wrapper_cfg)
        wrapper.setdefault('type', 'PretrainOptimWrapper')
        return OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=optimizer))


def parameter_groups(model: nn.Module) -> list[dict]:
    """Split the trainable parameters into those that decay and the others, with ``weight_decay=0``."""
    decaying: dict = dict(params=[])
    others: dict = dict(params=[], weight_decay=0.0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = decaying if parameter.ndim > 1 and not name.endswith('.bias') else others
            group['params'].append(parameter)
    return [group for group in (decaying, others) if group['params']]


# In MMEngine's registry, so that MMPretrain and MMDetection find it.
@registry.OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(LearningRateDecayOptimWrapperConstructor):
    """MMPretrain's layer-wise learning rate decay for every model with a ``backbone``, such as detectors.

    A layer is a block of a transformer or a stage of a ResNet. Everything after the backbone has the full rate, except
    for the last stage of a C4 detector, which is part of its head. Parameters of a layer with equal settings share a
    group, so that fused optimizers make few launches.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper with ``optimizer``.
        paramwise_cfg (dict): ``layer_decay_rate``, ``norm_decay_mult``, ``bias_decay_mult``, ``flat_decay_mult`` and
            ``custom_keys`` as in the parent.
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        get_layer_depth: LayerDepth | None = None,
        **kwargs,
    ) -> None:
        """Extend groups by the trainable parameters of the model or, within the recursion, of a submodule.

        ``get_layer_depth`` maps a parameter's name to its depth and the number of depths; by default that of the model.
        """
        super().add_params(params, module, prefix, get_layer_depth or find_layer_depth(module), **kwargs)
        if not prefix:
            params[:] = merge_groups(params)


def merge_groups(groups: list[dict]) -> list[dict]:
    """Merge groups that differ only in their parameters and names, in the order of their first parameters."""
    merged: dict[tuple, dict] = {}
    for group in groups:
        settings = {key: value for key, value in group.items() if key not in ('params', 'param_name')}
        known = merged.setdefault(tuple(sorted(settings.items())), dict(settings, params=[]))
        known['params'] += group['params']
    return list(merged.values())


def find_layer_depth(model: nn.Module) -> LayerDepth:
    """Function that maps a parameter's name to its zero-based depth and the number of depths.

    Raises:
        ValueError: The backbone is of an unknown kind.
    """
    backbone: Any = getattr(model, 'backbone', None)
    if hasattr(backbone, 'res_layers'):
        return _resnet_depth
    if hasattr(backbone, 'get_layer_depth'):
        return lambda name: backbone.get_layer_depth(name, 'backbone.')
    raise ValueError(
        f'LayerDecayOptimWrapperConstructor knows transformers and ResNets, not {type(backbone).__name__}: give it a '
        'method get_layer_depth(name, prefix)'
    )


def _resnet_depth(name: str) -> tuple[int, int]:
    """Depth 0 for the stem, 1 to 4 for the stages, 5 for the rest; a C4 detector has the fourth stage in its head."""
    stage = re.match(r'(?:backbone|roi_head\.shared_head)\.layer(\d)\.', name)
    if stage:
        return int(stage[1]), 6
    return (0 if name.startswith('backbone.') else 5), 6
