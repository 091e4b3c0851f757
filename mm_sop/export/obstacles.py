"""Properties of a backbone that a library cannot express."""

from mmpretrain.models import MoCoV3ViT, ResNet, VisionTransformer
from torch import nn

from mm_sop.models.backbones import FixedPositionViT, FreezableVisionTransformer, MaskedVisionTransformer
from mm_sop.models.utils.conv_stem import ConvStem

FIXED = frozenset({'timm', 'torchvision', 'huggingface'})
"""Targets with a fixed set of architectures."""

KEEPS_ORDER = frozenset({'mmpretrain', 'mmdet', 'safetensors'})
"""Targets whose files record the channel order; the others feed RGB."""

_PLAIN_TRANSFORMERS = (
    VisionTransformer,
    FreezableVisionTransformer,
    MaskedVisionTransformer,
    MoCoV3ViT,
    FixedPositionViT,
)


def find_obstacles(network: nn.Module, image_size: int, target: str, channel_order: str = 'rgb') -> list[str]:
    """List what a target cannot express.

    Args:
        network: Backbone of this project or of MMPretrain, or any other network.
        image_size: Side of the input images in pixels.
        target: Name of the target.
        channel_order: ``'rgb'`` or ``'bgr'``, the network's input.

    Returns:
        Properties of the network; empty if the target can express it.
    """
    if channel_order == 'bgr' and target not in KEEPS_ORDER:
        return ['a network that takes BGR']
    is_program = target in ('onnx', 'torchscript') and hasattr(network, 'forward_intermediates')
    if not is_program and not hasattr(network, 'init_cfg'):
        return [f'{type(network).__name__} of another library']
    if target not in FIXED:
        return []
    if type(network) in _PLAIN_TRANSFORMERS:
        return _vit_obstacles(network, image_size, target)
    if type(network) is ResNet:
        return _resnet_obstacles(network, target)
    return [f'the layout of {type(network).__name__}']


def _vit_obstacles(network: VisionTransformer, image_size: int, target: str) -> list[str]:
    block = network.layers[0]
    has_scale = not isinstance(block.attn.gamma1, nn.Identity)
    has_swiglu = hasattr(block.ffn, 'w12')
    found = {
        'its convolutional stem': isinstance(network.patch_embed, ConvStem),
        'no [CLS] token': network.cls_token is None,
        'no final norm': not network.final_norm,
        'a norm before the first block': not isinstance(network.pre_norm, nn.Identity),
        'an image that is not square': network.img_size[0] != network.img_size[1],
        f'images of {image_size} pixels with positions for {network.img_size[0]}': image_size != network.img_size[0],
        'LayerScale': has_scale and target == 'torchvision',
        'a SwiGLU': has_swiglu and (target != 'huggingface' or not has_scale),
        'no bias of queries, keys and values': block.attn.qkv.bias is None and target == 'torchvision',
        'an MLP width that is not a multiple of the embedding width': has_scale
        and target == 'huggingface'
        and bool(network.arch_settings['feedforward_channels'] % network.embed_dims),
    }
    return [name for name, is_there in found.items() if is_there]


def _resnet_obstacles(network: ResNet, target: str) -> list[str]:
    widths = (network.conv1.out_channels, network.base_channels) if not network.deep_stem else (64, 64)
    found = {
        'its stem of three convolutions': network.deep_stem,
        'downsampling by pooling': network.avg_down,
        'strides in the first convolutions ("caffe")': network.style != 'pytorch' and target != 'huggingface',
        f'strides {tuple(network.strides)}': tuple(network.strides) != (1, 2, 2, 2),
        f'dilations {tuple(network.dilations)}': set(network.dilations) != {1},
        f'{network.num_stages} stages': network.num_stages != 4,
        f'{widths[1]} instead of 64 channels': widths != (64, 64) and target != 'huggingface',
        'another depth': network.depth not in (18, 34, 50, 101, 152),
    }
    return [name for name, is_there in found.items() if is_there]
