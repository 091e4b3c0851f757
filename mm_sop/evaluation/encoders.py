"""Frozen encoders from checkpoints of MM-SOP, MMPretrain, timm and torchvision."""

import difflib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from mm_sop.engine.channel_order import find_preprocessor, network_order
from mm_sop.engine.formats import IMPORTS, read_format
from mm_sop.engine.launch import load_config
from mm_sop.engine.safe_config import build_untrusted
from mm_sop.engine.weights import (
    BACKBONE_PREFIXES,
    WeightsError,
    find_prefix,
    find_state_dict,
    load_complete,
    read_state_dict,
    strip_prefix,
)
from mm_sop.models.utils.readout import Readout, read_out

# The teacher's copy of a masked transformer lacks it, and nothing is masked here.
_UNUSED = ('mask_token',)
_IMAGENET = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


class FrozenEncoder(nn.Module):
    """Network in evaluation mode that gives one pooled vector for each picture.

    Samples whose meta information names them as ``unreadable`` get a vector of zeros.

    Args:
        network: Backbone.
        mean: Mean of the network's channels, of 0 ... 255.
        std: Standard deviation.
        to_rgb: Whether to reverse the channels of the pictures.
        identity: What the network is, ready for JSON.

    Attributes:
        identity: As given, with ``normalization``.
    """

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], to_rgb: bool, identity: dict
    ) -> None:
        super().__init__()
        normalization = dict(mean=list(mean), std=list(std))
        self.data_preprocessor = MODELS.build(
            dict(type='mmpretrain.SelfSupDataPreprocessor', to_rgb=to_rgb, **normalization)
        )
        self.network = network
        self.identity = dict(identity, normalization=normalization)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'FrozenEncoder':
        """Stay in evaluation mode, whatever a model around it asks for."""
        return super().train(False)

    def to(self, device: torch.device | str) -> 'FrozenEncoder':
        """Move the network; the preprocessor keeps its device by itself."""
        self.data_preprocessor.to(device)
        return super().to(device)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """Encode a collated batch.

        Args:
            batch: ``inputs`` and ``data_samples``.

        Returns:
            ``features``, fp32, (B, D), on the CPU.
        """
        features = self.read(batch).global_features
        readable = [not sample.get('unreadable') for sample in batch['data_samples']]
        return dict(features=features.float().cpu() * torch.tensor(readable)[:, None])

    def read(self, batch: dict, num_blocks: int = 1) -> Readout:
        """All representations of a collated batch, on the network's device; see :func:`read_out`.

        Args:
            batch: ``inputs`` and whatever else.
            num_blocks: Number of last blocks, or of stages, to read.
        """
        return read_out(self.network, self.data_preprocessor(batch, False)['inputs'], num_blocks)


class LoadedNetwork(NamedTuple):
    """A network with all of its weights.

    Attributes:
        module: The network, without classifier.
        backbone: Its config, or None for networks of other libraries.
        normalization: ``mean`` and ``std`` of the channels in its order, of 0 ... 255.
        prefix: Beginning of its names in the checkpoint.
        channel_order: ``'rgb'`` or ``'bgr'``, which the network takes.
    """

    module: nn.Module
    backbone: dict | None
    normalization: dict
    prefix: str
    channel_order: str = 'rgb'


def load_network(
    checkpoint: str | Path,
    config: Config | None = None,
    source: str | None = None,
    network: str = 'teacher',
    prefix: str | None = None,
    num_heads: int | None = None,
    content: object = None,
    is_stored: bool = False,
) -> LoadedNetwork:
    """Build a network and load all of its weights.

    Args:
        checkpoint: Weights, see :func:`read_state_dict`.
        config: Config whose model is meant unless ``source`` says otherwise.
        source: ``'timm:NAME'`` or ``'torchvision:NAME'``, a network of that library; ``'timm'``, ``'dinov2'``,
            ``'ibot'``, ``'torchvision'`` or ``'mmpretrain'``, a ViT or ResNet for a backbone of ours, see
            :func:`read_format`; or the path of another config.
        network: ``'teacher'`` or ``'student'`` where the checkpoint has both.
        prefix: Beginning of the network's names in the checkpoint. Defaults to None, found out.
        num_heads: Attention heads of networks that are known by their shapes alone.
        content: Content of the checkpoint, if it has been read already.
        is_stored: Whether the config comes from the checkpoint, and not from the user.

    Raises:
        WeightsError: The architecture is unknown, or the checkpoint does not hold all of it.
    """
    if content is None:
        state = read_state_dict(checkpoint, network)
    else:
        state = find_state_dict(content, str(checkpoint), network)
    kind, _, name = (source or '').partition(':')
    backbone, ignored, normalization, channel_order = None, _UNUSED, _IMAGENET, 'rgb'
    if kind in IMPORTS and not name:
        backbone, state = read_format(state, kind, network, num_heads, str(checkpoint))
        module, prefix = MODELS.build(backbone), ''
        print_log(f'{checkpoint}: the normalisation of ImageNet is assumed', logger='current')
    elif kind == 'timm':
        module, ignored, normalization = _build_timm(name)
    elif kind == 'torchvision':
        module, ignored, normalization = _build_torchvision(name)
    else:
        config = _load_source(source) if source else config
        backbone, settings = config.model.backbone, find_preprocessor(config)
        module = build_untrusted(MODELS, backbone, str(checkpoint)) if is_stored else MODELS.build(backbone)
        normalization = {key: settings.get(key, default) for key, default in _IMAGENET.items()}
        channel_order = network_order(config)
    if prefix is None:
        prefix = find_prefix(state, module.state_dict(), BACKBONE_PREFIXES[network], str(checkpoint), ignored)
    load_complete(module, strip_prefix(state, prefix), f'{checkpoint} (prefix {prefix!r})', ignored)
    return LoadedNetwork(module, backbone, normalization, prefix, channel_order)


def _load_source(source: str) -> Config:
    if not Path(source).is_file():
        raise WeightsError(
            f'no format or config {source!r}{_similar(source, IMPORTS)}: expected {", ".join(IMPORTS)}, timm:NAME, '
            'torchvision:NAME or the config of a run'
        )
    return load_config(source)


def build_encoder(
    config: Config,
    checkpoint: str | Path,
    source: str | None = None,
    network: str = 'teacher',
    prefix: str | None = None,
    loaded_as: str = 'bgr',
) -> FrozenEncoder:
    """Build an encoder and load all of its weights.

    Args:
        config: Config whose training pictures are encoded; its model is the encoder unless ``source`` says otherwise.
        checkpoint: Weights, see :func:`read_state_dict`.
        source: Where the encoder comes from, see :func:`load_network`.
        network: ``'teacher'`` or ``'student'`` where the checkpoint has both.
        prefix: Beginning of the encoder's names in the checkpoint. Defaults to None, found out.
        loaded_as: Order of the channels in which the pictures will come, ``'bgr'`` or ``'rgb'``.

    Returns:
        The encoder, on the CPU.

    Raises:
        WeightsError: The architecture is unknown, or the checkpoint does not hold all of it.
    """
    loaded = load_network(checkpoint, config, source, network, prefix)
    # The preprocessor's name for reversing the channels.
    to_rgb = loaded.channel_order != loaded_as
    identity = dict(
        source=source or Path(config.filename or 'config').name,
        architecture=type(loaded.module).__name__,
        checkpoint=Path(checkpoint).name,
        checkpoint_sha256=hash_file(checkpoint),
        network=network,
        prefix=loaded.prefix,
        backbone=loaded.backbone and Config(dict(backbone=loaded.backbone)).to_dict()['backbone'],
        to_rgb=to_rgb,
        feature='pooled output of the backbone',
    )
    return FrozenEncoder(loaded.module, **loaded.normalization, to_rgb=to_rgb, identity=identity)


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()


def _build_timm(name: str) -> tuple[nn.Module, tuple[str, ...], dict]:
    try:
        import timm
    except ImportError as error:
        raise WeightsError('an encoder of timm needs `pip install timm`') from error
    if not timm.is_model(name):
        raise WeightsError(f'timm has no model {name!r}{_similar(name, timm.list_models())}')
    module = timm.create_model(name, pretrained=False, num_classes=0)
    settings = module.pretrained_cfg
    classifiers = settings.get('classifier') or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    normalization = {key: tuple(255 * value for value in settings[key]) for key in ('mean', 'std')}
    return module, tuple(f'{classifier}.' for classifier in classifiers), normalization


def _build_torchvision(name: str) -> tuple[nn.Module, tuple[str, ...], dict]:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise WeightsError(f'torchvision has no model {name!r}{_similar(name, list_models())}')
    module = get_model(name, weights=None)
    complete = module.state_dict().keys()
    for attribute in ('fc', 'head', 'heads', 'classifier'):
        if hasattr(module, attribute):
            setattr(module, attribute, _before_first_linear(getattr(module, attribute)))
            return module, tuple(complete - module.state_dict().keys()), _IMAGENET
    raise WeightsError(f'the classifier of torchvision:{name} is not known: choose a model for classification')


def _before_first_linear(classifier: nn.Module) -> nn.Module:
    """What a classifier does to the features before it classifies, such as normalising or flattening them."""
    if not isinstance(classifier, nn.Sequential):
        return nn.Identity()
    layers = list(classifier)
    number = next((index for index, layer in enumerate(layers) if isinstance(layer, nn.Linear)), len(layers))
    return nn.Sequential(*layers[:number])


def _similar(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names)
    return f'; did you mean {" or ".join(close)}?' if close else ''
