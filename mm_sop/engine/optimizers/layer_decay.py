"""Smaller learning rates for the layers near the picture."""

import re
from collections.abc import Callable

from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS as DETECTION_CONSTRUCTORS
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

LayerDepth = Callable[[str], tuple[int, int]]


@DETECTION_CONSTRUCTORS.register_module()
@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(LearningRateDecayOptimWrapperConstructor):
    """MMPretrain's layer-wise learning rate decay for every model with a ``backbone``, such as detectors.

    A layer is a block of a transformer or a stage of a ResNet; everything behind the backbone has the full rate,
    except for the last stage that a C4 detector keeps in its head. Parameters of one layer with equal settings share a
    group, so that fused optimisers make few launches.

    Args:
        optim_wrapper_cfg (dict): Config of the optimiser wrapper with ``optimizer``.
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
            module: The model, or within the recursion a part of it.
            prefix: Name of the part.
            get_layer_depth: Depth of a parameter, and number of depths. Defaults to None, that of the model.
            **kwargs: Passed on.
        """
        super().add_params(params, module, prefix, get_layer_depth or find_layer_depth(module), **kwargs)
        if not prefix:
            params[:] = merge_groups(params)


def merge_groups(groups: list[dict]) -> list[dict]:
    """Join groups that differ in nothing but their parameters' names.

    Args:
        groups: Groups of an optimiser.

    Returns:
        Groups without ``param_name``, in the order of their first members.
    """
    merged: dict[tuple, dict] = {}
    for group in groups:
        settings = {key: value for key, value in group.items() if key not in ('params', 'param_name')}
        known = merged.setdefault(tuple(sorted(settings.items())), dict(settings, params=[]))
        known['params'] += group['params']
    return list(merged.values())


def find_layer_depth(model: nn.Module) -> LayerDepth:
    """How deep a parameter of a model lies.

    Args:
        model: The model.

    Returns:
        Function of a name that gives the depth, from 0, and the number of depths.

    Raises:
        ValueError: The backbone is of an unknown kind.
    """
    backbone = getattr(model, 'backbone', None)
    if hasattr(backbone, 'res_layers'):
        return _resnet_depth
    if hasattr(backbone, 'get_layer_depth'):
        return lambda name: backbone.get_layer_depth(name, 'backbone.')
    raise ValueError(
        f'LayerDecayOptimWrapperConstructor knows transformers and ResNets, not {type(backbone).__name__}: give it a '
        'method get_layer_depth(name, prefix)'
    )


def _resnet_depth(name: str) -> tuple[int, int]:
    """Stem 0, stages 1 to 4, the rest 5; the fourth stage of a C4 detector stands in its head."""
    stage = re.match(r'(?:backbone|roi_head\.shared_head)\.layer(\d)\.', name)
    if stage:
        return int(stage[1]), 6
    return (0 if name.startswith('backbone.') else 5), 6
