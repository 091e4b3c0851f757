"""Where a network looks: attention of [CLS], or likeness of places to the whole."""

import matplotlib
import numpy as np
import torch
from mmpretrain.models.utils import MultiheadAttention
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity


def find_last_attention(backbone: nn.Module) -> MultiheadAttention | None:
    """The attention of the last block of a vision transformer with [CLS], or None for other backbones."""
    attentions = [module for module in backbone.modules() if isinstance(module, MultiheadAttention)]
    return attentions[-1] if attentions and getattr(backbone, 'cls_token', None) is not None else None


@torch.no_grad()
def cls_attention(backbone: nn.Module, images: Tensor) -> Tensor:
    """Attention of [CLS] to the patches in the last block, one map for each head.

    Fused attention never forms the weights, so they are computed anew from the queries and keys that pass by.

    Args:
        backbone: Vision transformer of MMPretrain.
        images: Normalised images, (B, C, H, W).

    Returns:
        Attention, (B, heads, h, w). Maps sum to one minus the attention that [CLS] and other extra tokens receive.

    Raises:
        ValueError: If the backbone has no [CLS] token or other attention than MMPretrain's.
    """
    attention = find_last_attention(backbone)
    if attention is None:
        raise ValueError(f'{type(backbone).__name__} has no [CLS] token with multi-head attention')
    seen = []
    handle = attention.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        backbone(images)
    finally:
        handle.remove()
    queries, keys, _ = seen[0].unflatten(-1, (3, attention.num_heads, attention.head_dims)).permute(2, 0, 3, 1, 4)
    weights = (queries[:, :, 0] * attention.head_dims**-0.5).unsqueeze(2) @ keys.transpose(-2, -1)
    patches = weights.softmax(-1).squeeze(2)[..., backbone.num_extra_tokens :]
    return patches.unflatten(-1, _grid(patches.shape[-1], images))


@torch.no_grad()
def global_likeness(global_features: Tensor, local_map: Tensor) -> Tensor:
    """Cosine of every place of a feature map to the picture's global representation.

    Args:
        global_features: (B, D).
        local_map: (B, D, h, w).

    Returns:
        Cosines, (B, 1, h, w).
    """
    return cosine_similarity(local_map, global_features[..., None, None], dim=1).unsqueeze(1)


def overlay(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Colour a picture by a coarse map, from dark for its smallest to bright for its largest value.

    Args:
        picture: RGB, uint8, (H, W, 3).
        weights: Map, (h, w).

    Returns:
        RGB, uint8, (H, W, 3).
    """
    low, high = weights.min(), weights.max()
    scaled = Image.fromarray(((weights - low) / max(high - low, 1e-12)).astype(np.float32))
    smooth = np.asarray(scaled.resize(picture.shape[1::-1], Image.Resampling.BICUBIC)).clip(0, 1)
    heat = matplotlib.colormaps['inferno'](smooth)[..., :3]
    grey = picture.mean(2, keepdims=True) / 255
    return (255 * (0.35 * grey + 0.65 * heat)).round().astype(np.uint8)


def _grid(num_patches: int, images: Tensor) -> tuple[int, int]:
    height, width = images.shape[-2:]
    rows = round((num_patches * height / width) ** 0.5)
    return rows, num_patches // rows
