"""Properties of a backbone that a library cannot express."""

from mmpretrain.models import MoCoV3ViT, ResNet, VisionTransformer
from torch import nn

from mm_sop.encoders.encoder import Encoder
from mm_sop.models.backbones import FixedPositionViT, FreezableVisionTransformer, MaskedVisionTransformer
from mm_sop.models.utils.conv_stem import ConvStem

FIXED = frozenset({'timm', 'torchvision', 'huggingface'})
"""Targets with a fixed set of architectures."""

KEEPS_ORDER = frozenset({'mmpretrain', 'mmdet', 'safetensors'})
"""Targets whose files record the channel order; the others feed RGB."""

_OUR_TRANSFORMERS = (FreezableVisionTransformer, MaskedVisionTransformer, FixedPositionViT)
_PLAIN_TRANSFORMERS = (VisionTransformer, MoCoV3ViT, *_OUR_TRANSFORMERS)


def find_obstacles(encoder: Encoder, target: str) -> list[str]:
    """List the properties of an encoder that a target cannot express, by name; its network may be of any library."""
    network, image_size = encoder.network, encoder.specification.image_size
    if encoder.specification.channel_order == 'bgr' and target not in KEEPS_ORDER:
        return ['a network that takes BGR']
    is_program = target in ('onnx', 'torchscript') and hasattr(network, 'forward_intermediates')
    if not is_program and not hasattr(network, 'init_cfg'):
        return [f'{type(network).__name__} of another library']
    if target not in FIXED:
        return []
    if type(network) in _PLAIN_TRANSFORMERS:
        found = _vit_obstacles(network, image_size, target)
    elif type(network) is ResNet:
        found = _resnet_obstacles(network, target)
    else:
        found = {f'the layout of {type(network).__name__}': True}
    return [name for name, is_there in found.items() if is_there]


def _vit_obstacles(network: VisionTransformer, image_size: int, target: str) -> dict[str, bool]:
    block = network.layers[0]
    has_scale = not isinstance(block.attn.gamma1, nn.Identity)
    has_swiglu = hasattr(block.ffn, 'w12')
    width = network.arch_settings['feedforward_channels']
    has_other_ratio = has_scale and target == 'huggingface' and width % network.embed_dims != 0
    return {
        'its convolutional stem': isinstance(network.patch_embed, ConvStem),
        'no [CLS] token': network.cls_token is None,
        'no final norm': not network.final_norm,
        'a norm before the first block': not isinstance(network.pre_norm, nn.Identity),
        'an image that is not square': network.img_size[0] != network.img_size[1],
        f'images of {image_size} pixels with positions for {network.img_size[0]}': image_size != network.img_size[0],
        'LayerScale': has_scale and target == 'torchvision',
        'a SwiGLU': has_swiglu and (target != 'huggingface' or not has_scale),
        'no bias of queries, keys and values': block.attn.qkv.bias is None and target == 'torchvision',
        'an MLP width that is not a multiple of the embedding width': has_other_ratio,
    }


def _resnet_obstacles(network: ResNet, target: str) -> dict[str, bool]:
    widths = (network.conv1.out_channels, network.base_channels) if not network.deep_stem else (64, 64)
    return {
        'its stem of three convolutions': network.deep_stem,
        'downsampling by pooling': network.avg_down,
        'strides in the first convolutions ("caffe")': network.style != 'pytorch' and target != 'huggingface',
        f'strides {tuple(network.strides)}': tuple(network.strides) != (1, 2, 2, 2),
        f'dilations {tuple(network.dilations)}': set(network.dilations) != {1},
        f'{network.num_stages} stages': network.num_stages != 4,
        f'{widths[1]} instead of 64 channels': widths != (64, 64) and target != 'huggingface',
        'another depth': network.depth not in (18, 34, 50, 101, 152),
    }
