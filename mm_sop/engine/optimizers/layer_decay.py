"""Layer-wise learning rate decay: smaller rates for layers near the input."""

import re
from collections.abc import Callable
from typing import Any

from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import nn

LayerDepth = Callable[[str], tuple[int, int]]


# In MMEngine's registry, so that MMPretrain and MMDetection find it.
@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
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
        """Add the trainable parameters of a module in groups.

        Args:
            params: Groups, extended in place.
            module: The model, or within the recursion a submodule.
            prefix: Name of the submodule.
            get_layer_depth: Maps a parameter's name to its depth and the number of depths. Defaults to that of the
                model.
            **kwargs: Passed to the parent.
        """
        super().add_params(params, module, prefix, get_layer_depth or find_layer_depth(module), **kwargs)
        if not prefix:
            params[:] = merge_groups(params)


def merge_groups(groups: list[dict]) -> list[dict]:
    """Merge groups that differ only in their parameters and names.

    Args:
        groups: Groups of an optimizer.

    Returns:
        Groups without ``param_name``, in the order of their first parameters.
    """
    merged: dict[tuple, dict] = {}
    for group in groups:
        settings = {key: value for key, value in group.items() if key not in ('params', 'param_name')}
        known = merged.setdefault(tuple(sorted(settings.items())), dict(settings, params=[]))
        known['params'] += group['params']
    return list(merged.values())


def find_layer_depth(model: nn.Module) -> LayerDepth:
    """Function that maps a parameter's name to its zero-based depth and the number of depths.

    Args:
        model: The model.

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
