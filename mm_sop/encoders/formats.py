"""Networks of other libraries: key names of their weights, architectures, and classifiers to leave out.

"Our" names are those of MMPretrain's ``VisionTransformer`` and ``ResNet``, which the backbones of MM-SOP share.
"""

import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mm_sop.encoders.checkpoint import BACKBONE_PREFIXES, NOT_ENCODER, WeightsError, strip_prefix

_TIMM_VIT = {
    'cls_token': 'cls_token',
    'pos_embed': 'pos_embed',
    'patch_embed.projection': 'patch_embed.proj',
    'layers.{}.ln1': 'blocks.{}.norm1',
    'layers.{}.attn.qkv': 'blocks.{}.attn.qkv',
    'layers.{}.attn.proj': 'blocks.{}.attn.proj',
    'layers.{}.attn.gamma1.weight': 'blocks.{}.ls1.gamma',
    'layers.{}.ln2': 'blocks.{}.norm2',
    'layers.{}.ffn.layers.0.0': 'blocks.{}.mlp.fc1',
    'layers.{}.ffn.layers.1': 'blocks.{}.mlp.fc2',
    'layers.{}.ffn.gamma2.weight': 'blocks.{}.ls2.gamma',
    'ln1': 'norm',
}
_DINOV2_VIT = _TIMM_VIT | {'layers.{}.ffn.w12': 'blocks.{}.mlp.w12', 'layers.{}.ffn.w3': 'blocks.{}.mlp.w3'}
_IBOT_VIT = _TIMM_VIT | {
    'layers.{}.attn.gamma1.weight': 'blocks.{}.gamma_1',
    'layers.{}.ffn.gamma2.weight': 'blocks.{}.gamma_2',
}
_TORCHVISION_VIT = {
    'cls_token': 'class_token',
    'pos_embed': 'encoder.pos_embedding',
    'patch_embed.projection': 'conv_proj',
    'layers.{}.ln1': 'encoder.layers.encoder_layer_{}.ln_1',
    'layers.{}.attn.qkv.weight': 'encoder.layers.encoder_layer_{}.self_attention.in_proj_weight',
    'layers.{}.attn.qkv.bias': 'encoder.layers.encoder_layer_{}.self_attention.in_proj_bias',
    'layers.{}.attn.proj': 'encoder.layers.encoder_layer_{}.self_attention.out_proj',
    'layers.{}.ln2': 'encoder.layers.encoder_layer_{}.ln_2',
    'layers.{}.ffn.layers.0.0': 'encoder.layers.encoder_layer_{}.mlp.0',
    'layers.{}.ffn.layers.1': 'encoder.layers.encoder_layer_{}.mlp.3',
    'ln1': 'encoder.ln',
}
# Queries, keys and values are separate here. Newer releases of Transformers name modules differently, but still read
# these names.
_HUGGINGFACE = {
    'cls_token': 'embeddings.cls_token',
    'pos_embed': 'embeddings.position_embeddings',
    'patch_embed.projection': 'embeddings.patch_embeddings.projection',
    'layers.{}.attn.q': 'encoder.layer.{}.attention.attention.query',
    'layers.{}.attn.k': 'encoder.layer.{}.attention.attention.key',
    'layers.{}.attn.v': 'encoder.layer.{}.attention.attention.value',
    'layers.{}.attn.proj': 'encoder.layer.{}.attention.output.dense',
    'ln1': 'layernorm',
}
_HUGGINGFACE_VIT = _HUGGINGFACE | {
    'layers.{}.ln1': 'encoder.layer.{}.layernorm_before',
    'layers.{}.ln2': 'encoder.layer.{}.layernorm_after',
    'layers.{}.ffn.layers.0.0': 'encoder.layer.{}.intermediate.dense',
    'layers.{}.ffn.layers.1': 'encoder.layer.{}.output.dense',
}
_HUGGINGFACE_DINOV2 = _HUGGINGFACE | {
    'layers.{}.ln1': 'encoder.layer.{}.norm1',
    'layers.{}.attn.gamma1.weight': 'encoder.layer.{}.layer_scale1.lambda1',
    'layers.{}.ln2': 'encoder.layer.{}.norm2',
    'layers.{}.ffn.layers.0.0': 'encoder.layer.{}.mlp.fc1',
    'layers.{}.ffn.layers.1': 'encoder.layer.{}.mlp.fc2',
    'layers.{}.ffn.w12': 'encoder.layer.{}.mlp.weights_in',
    'layers.{}.ffn.w3': 'encoder.layer.{}.mlp.weights_out',
    'layers.{}.ffn.gamma2.weight': 'encoder.layer.{}.layer_scale2.lambda1',
}
_HUGGINGFACE_RESNET = {'conv1': 'embedder.embedder.convolution', 'bn1': 'embedder.embedder.normalization'}
for _stage in range(4):
    _ours, _theirs = f'layer{_stage + 1}.{{}}', f'encoder.stages.{_stage}.layers.{{}}'
    for _number in range(3):
        _HUGGINGFACE_RESNET[f'{_ours}.conv{_number + 1}'] = f'{_theirs}.layer.{_number}.convolution'
        _HUGGINGFACE_RESNET[f'{_ours}.bn{_number + 1}'] = f'{_theirs}.layer.{_number}.normalization'
    _HUGGINGFACE_RESNET[f'{_ours}.downsample.0'] = f'{_theirs}.shortcut.convolution'
    _HUGGINGFACE_RESNET[f'{_ours}.downsample.1'] = f'{_theirs}.shortcut.normalization'

TABLES = dict(
    mmpretrain={},
    mmdet={},
    safetensors={},
    timm=_TIMM_VIT,
    dinov2=_DINOV2_VIT,
    ibot=_IBOT_VIT,
    torchvision=_TORCHVISION_VIT,
    huggingface_vit=_HUGGINGFACE_VIT,
    huggingface_dinov2=_HUGGINGFACE_DINOV2,
    huggingface_resnet=_HUGGINGFACE_RESNET,
)
"""Our names and theirs, by format; ResNets have our names in timm and torchvision too."""

IMPORTS = ('timm', 'dinov2', 'ibot', 'torchvision', 'mmpretrain')
"""Formats whose networks can be inferred from the shapes of their weights."""

IMAGENET = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
"""Normalization of ImageNet, for values in [0, 255]."""

# Training code of DINOv2 keeps its blocks in chunks; the second number is that of the block.
_CHUNK = re.compile(r'^blocks\.\d+\.(?=\d+\.)')
_STARTS = ('conv1.weight', 'patch_embed.projection.weight', 'patch_embed.proj.weight', 'conv_proj.weight')
_DEPTHS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


def to_format(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Rename the weights of one of our backbones to a format of :data:`TABLES`; raises a ValueError for others."""
    _check_name(name)
    separates = name in ('huggingface_vit', 'huggingface_dinov2')
    split = {}
    for key, value in state.items():
        if separates and '.attn.qkv.' in key:
            for letter, chunk in zip('qkv', value.chunk(3), strict=True):
                # Safetensors refuses tensors with shared memory.
                split[key.replace('.qkv.', f'.{letter}.')] = chunk.clone()
        else:
            split[key] = value
    return _rename(split, TABLES[name])


def from_format(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Invert :func:`to_format`; unknown names of tensors stay."""
    _check_name(name)
    renamed, joined = _rename(state, {theirs: ours for ours, theirs in TABLES[name].items()}), {}
    for key, value in renamed.items():
        if '.attn.q.' in key:
            others = [renamed[key.replace('.attn.q.', f'.attn.{letter}.')] for letter in 'kv']
            joined[key.replace('.q.', '.qkv.')] = torch.cat([value, *others])
        elif '.attn.k.' not in key and '.attn.v.' not in key:
            joined[key] = value
    return joined


def _check_name(name: str) -> None:
    if name not in TABLES:
        raise ValueError(f'no format {name!r} of weights: expected one of {", ".join(TABLES)}')


def read_format(
    state: Mapping[str, Tensor], name: str, network: str = 'teacher', num_heads: int | None = None, source: str = ''
) -> tuple[dict, dict[str, Tensor]]:
    """Infer the encoder in a checkpoint of another library.

    Args:
        state: Tensors of the checkpoint.
        name: Format, one of :data:`IMPORTS`.
        num_heads: Attention heads, which the shapes do not tell. Defaults to one per 64 channels.

    Returns:
        Config of a backbone of ours, and its weights.

    Raises:
        WeightsError: The checkpoint holds no ViT or ResNet of a kind that our backbones can be.
    """
    known = (*BACKBONE_PREFIXES[network], 'module.backbone.', 'module.')
    prefixes = [prefix for prefix in known if any(prefix + start in state for start in _STARTS)]
    if not prefixes:
        beginnings = ', '.join(sorted({key.split('.')[0] for key in state})[:8])
        raise WeightsError(f'{source} holds no ViT or ResNet by the names of {name}: its names begin with {beginnings}')
    encoder = strip_prefix(state, prefixes[0])
    encoder = {_CHUNK.sub('blocks.', key): encoder[key] for key in encoder if not key.startswith(NOT_ENCODER)}
    encoder = from_format(encoder, name)
    if 'conv1.weight' in encoder:
        return _infer_resnet(encoder, source), encoder
    return _infer_vit(encoder, name, num_heads, source), encoder


def _infer_vit(state: Mapping[str, Tensor], name: str, num_heads: int | None, source: str) -> dict:
    weight = state.get('patch_embed.projection.weight')
    if weight is None:
        raise WeightsError(f'{source} does not name its patch embedding as the library that it is said to come from')
    if 'pos_embed' not in state:
        raise WeightsError(f'{source} has no position embedding: only networks with absolute positions can be read')
    if 'register_tokens' in state or 'reg_token' in state:
        raise WeightsError(f'{source} has register tokens, which our backbones lack: use it as timm:NAME')
    width, channels, patch_size, _ = weight.shape
    side = math.isqrt(state['pos_embed'].shape[1] - 1)
    if 'cls_token' not in state or side**2 + 1 != state['pos_embed'].shape[1]:
        raise WeightsError(f'{source} has positions for other tokens than [CLS] and a square of patches')
    swiglu = 'layers.0.ffn.w3.weight' in state
    layers = {key.split('.')[1] for key in state if key.startswith('layers.')}
    if not num_heads:
        if width % 64:
            raise WeightsError(f'{source}: {width} channels do not tell the number of attention heads: give num_heads')
        num_heads = width // 64
        print_log(f'{source}: {num_heads} attention heads of 64 channels are assumed', logger='current')
    hidden = _hidden_channels(state, name, source)
    return dict(
        type='MaskedVisionTransformer' if name in ('dinov2', 'ibot') else 'VisionTransformer',
        arch=dict(embed_dims=width, num_layers=len(layers), num_heads=num_heads, feedforward_channels=hidden),
        img_size=side * patch_size,
        patch_size=patch_size,
        in_channels=channels,
        qkv_bias='layers.0.attn.qkv.bias' in state,
        final_norm='ln1.weight' in state,
        layer_scale_init_value=1.0 if 'layers.0.attn.gamma1.weight' in state else 0.0,
        layer_cfgs=dict(ffn_type='swiglu_fused') if swiglu else dict(),
        out_type='raw',
    )


def _hidden_channels(state: Mapping[str, Tensor], name: str, source: str) -> int:
    if 'layers.0.ffn.w3.weight' in state:
        return state['layers.0.ffn.w3.weight'].shape[1] * 3 // 2
    key = 'layers.0.ffn.layers.0.0.weight'
    if key not in state:
        theirs = next(iter(to_format({key: torch.empty(0)}, name)))
        raise WeightsError(f'{source} has no {theirs}, the MLP of the first block')
    return len(state[key])


def _infer_resnet(state: Mapping[str, Tensor], source: str) -> dict:
    stages = [{key.split('.')[1] for key in state if key.startswith(f'layer{stage}.')} for stage in range(1, 5)]
    blocks, is_bottleneck = tuple(map(len, stages)), 'layer1.0.conv3.weight' in state
    stem = state['conv1.weight']
    if (blocks, is_bottleneck) not in _DEPTHS or stem.shape[-1] != 7:
        raise WeightsError(
            f'{source} holds no ResNet-18, -34, -50, -101 or -152 with a 7x7 stem, but {blocks} blocks and a stem of '
            f'{tuple(stem.shape)}: give its config'
        )
    return dict(
        type='ResNet',
        depth=_DEPTHS[blocks, is_bottleneck],
        in_channels=stem.shape[1],
        stem_channels=len(stem),
        base_channels=len(state['layer1.0.conv1.weight']),
    )


def _rename(state: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace the prefixes of names; ``{}`` stands for a number."""
    rules = [(re.compile(re.escape(old).replace(r'\{\}', r'(\d+)') + r'(?=\.|$)'), new) for old, new in table.items()]
    renamed = {}
    for name, value in state.items():
        for pattern, new in rules:
            if match := pattern.match(name):
                renamed[new.format(*match.groups()) + name[match.end() :]] = value
                break
        else:
            renamed[name] = value
    return renamed


def build_timm(name: str) -> tuple[nn.Module, tuple[str, ...], dict]:
    """Return a timm network without classifier, key prefixes of the classifier and the normalization."""
    import timm

    if not timm.is_model(name):
        raise WeightsError(f'timm has no model {name!r}{similar(name, timm.list_models())}')
    module = timm.create_model(name, pretrained=False, num_classes=0)
    settings: Any = module.pretrained_cfg
    classifiers = settings.get('classifier') or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    normalization = {key: tuple(255 * value for value in settings[key]) for key in ('mean', 'std')}
    return module, tuple(f'{classifier}.' for classifier in classifiers), normalization


def build_torchvision(name: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a torchvision network without classifier, and the keys of what was left out."""
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise WeightsError(f'torchvision has no model {name!r}{similar(name, list_models())}')
    module = get_model(name, weights=None)
    complete = module.state_dict().keys()
    attribute = next((each for each in ('fc', 'head', 'heads', 'classifier') if hasattr(module, each)), None)
    if attribute is None:
        raise WeightsError(f'the classifier of torchvision:{name} is not known: choose a model for classification')
    # What stands before the first linear layer, such as a norm or flattening, belongs to the features.
    classifier = getattr(module, attribute)
    layers = list(classifier) if isinstance(classifier, nn.Sequential) else []
    kept = list(itertools.takewhile(lambda layer: not isinstance(layer, nn.Linear), layers))
    setattr(module, attribute, nn.Sequential(*kept) if layers else nn.Identity())
    return module, tuple(complete - module.state_dict().keys())


def similar(name: str, names: Sequence[str]) -> str:
    """Suggest names like an unknown one, as the end of a message; empty if there are none."""
    close = difflib.get_close_matches(name, names)
    return f'; did you mean {" or ".join(close)}?' if close else ''
