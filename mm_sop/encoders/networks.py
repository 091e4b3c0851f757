"""Builds networks of MM-SOP, MMPretrain, timm and torchvision, with all of their weights."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log
from mmpretrain.registry import MODELS
from torch import nn

from mm_sop.encoders.checkpoint import Checkpoint, WeightsError, load_backbone
from mm_sop.encoders.formats import IMPORTS, read_format
from mm_sop.encoders.safe_config import build_untrusted
from mm_sop.utils.channel_order import find_preprocessor, network_order
from mm_sop.utils.config import load_config

_IMAGENET = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


class LoadedNetwork(NamedTuple):
    """A network with all of its weights.

    Attributes:
        module: The network, without classifier.
        backbone: Its config, or None for networks of other libraries.
        normalization: ``mean`` and ``std`` of the channels in the network's order, in [0, 255].
        prefix: State-dict key prefix in the checkpoint.
        channel_order: ``'rgb'`` or ``'bgr'``, which the network takes.
    """

    module: nn.Module
    backbone: dict | None
    normalization: dict
    prefix: str
    channel_order: str = 'rgb'


def load_network(
    checkpoint: Checkpoint,
    config: Config | None = None,
    source: str | None = None,
    network: str = 'teacher',
    prefix: str | None = None,
    num_heads: int | None = None,
    is_stored: bool = False,
) -> LoadedNetwork:
    """Build a network and load all of its weights.

    Args:
        checkpoint: The weights.
        config: Config whose model is built unless ``source`` is given.
        source: ``'timm:NAME'`` or ``'torchvision:NAME'``, a network of that library; ``'timm'``, ``'dinov2'``,
            ``'ibot'``, ``'torchvision'`` or ``'mmpretrain'``, a ViT or ResNet for a backbone of ours, see
            :func:`read_format`; or the path of another config.
        network: ``'teacher'`` or ``'student'`` where the checkpoint has both.
        prefix: State-dict key prefix. Detected if None.
        num_heads: Attention heads of networks that are known by their shapes alone.
        is_stored: Whether the config comes from the checkpoint, and not from the user.

    Raises:
        WeightsError: The architecture is unknown, or the checkpoint does not hold all of it.
    """
    origin, state = str(checkpoint.path), checkpoint.state_dict(network)
    kind, _, name = (source or '').partition(':')
    backbone, normalization, channel_order = None, _IMAGENET, 'rgb'
    ignored: tuple[str, ...] = ()
    if kind in IMPORTS and not name:
        backbone, state = read_format(state, kind, network, num_heads, origin)
        module, prefix = MODELS.build(backbone), ''
        print_log(f'{origin}: the normalization of ImageNet is assumed', logger='current')
    elif kind == 'timm':
        module, ignored, normalization = _build_timm(name)
    elif kind == 'torchvision':
        module, ignored = _build_torchvision(name)
    else:
        if source:
            config = _load_source(source)
        if config is None:
            raise WeightsError(f'{origin} needs the config of its run')
        backbone, settings = config.model.backbone, find_preprocessor(config)
        module = build_untrusted(MODELS, backbone, origin) if is_stored else MODELS.build(backbone)
        normalization = {key: settings.get(key, default) for key, default in _IMAGENET.items()}
        channel_order = network_order(config)
    prefix = load_backbone(module, state, origin, network, prefix, ignored)
    return LoadedNetwork(module, backbone, normalization, prefix, channel_order)


def _load_source(source: str) -> Config:
    if not Path(source).is_file():
        raise WeightsError(
            f'no format or config {source!r}{_similar(source, IMPORTS)}: expected {", ".join(IMPORTS)}, timm:NAME, '
            'torchvision:NAME or the config of a run'
        )
    return load_config(source)


def _build_timm(name: str) -> tuple[nn.Module, tuple[str, ...], dict]:
    """Return the network without classifier, key prefixes of the classifier and the normalization."""
    try:
        import timm
    except ImportError as error:
        raise WeightsError('an encoder of timm needs `pip install timm`') from error
    if not timm.is_model(name):
        raise WeightsError(f'timm has no model {name!r}{_similar(name, timm.list_models())}')
    module = timm.create_model(name, pretrained=False, num_classes=0)
    settings: Any = module.pretrained_cfg
    classifiers = settings.get('classifier') or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    normalization = {key: tuple(255 * value for value in settings[key]) for key in ('mean', 'std')}
    return module, tuple(f'{classifier}.' for classifier in classifiers), normalization


def _build_torchvision(name: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the network without classifier, and the keys of what was left out."""
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise WeightsError(f'torchvision has no model {name!r}{_similar(name, list_models())}')
    module = get_model(name, weights=None)
    complete = module.state_dict().keys()
    for attribute in ('fc', 'head', 'heads', 'classifier'):
        if hasattr(module, attribute):
            setattr(module, attribute, _before_first_linear(getattr(module, attribute)))
            return module, tuple(complete - module.state_dict().keys())
    raise WeightsError(f'the classifier of torchvision:{name} is not known: choose a model for classification')


def _before_first_linear(classifier: nn.Module) -> nn.Module:
    """What a classifier does to the features before it classifies, such as normalizing or flattening them."""
    if not isinstance(classifier, nn.Sequential):
        return nn.Identity()
    layers = list(classifier)
    number = next((index for index, layer in enumerate(layers) if isinstance(layer, nn.Linear)), len(layers))
    return nn.Sequential(*layers[:number])


def _similar(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names)
    return f'; did you mean {" or ".join(close)}?' if close else ''
