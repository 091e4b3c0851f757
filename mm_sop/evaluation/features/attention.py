"""Spatial maps of a network: attention of [CLS], and similarity of patches to the whole image."""

import torch
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity


def find_last_attention(backbone: nn.Module) -> MultiheadAttention | None:
    """Attention of the last block of a vision transformer with [CLS], or None for other backbones."""
    attentions = [module for module in backbone.modules() if isinstance(module, MultiheadAttention)]
    return attentions[-1] if attentions and getattr(backbone, 'cls_token', None) is not None else None


@torch.no_grad()
def cls_attention(backbone: nn.Module, images: Tensor) -> Tensor:
    """Attention of [CLS] to the patches in the last block, one map for each head.

    Fused attention never computes the weights, so they are computed again from the queries and keys.

    Args:
        backbone: Vision transformer of MMPretrain.
        images: Normalized images, (B, C, H, W).

    Returns:
        Attention, (B, heads, h, w). A map sums to one minus the attention to [CLS] and other extra tokens.

    Raises:
        ValueError: The backbone has no [CLS] token, or other attention than MMPretrain's.
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
    # (B, L, 3 heads d) -> (3, B, heads, L, d)
    queries, keys, _ = seen[0].unflatten(-1, (3, attention.num_heads, attention.head_dims)).permute(2, 0, 3, 1, 4)
    weights = (queries[:, :, 0] * attention.head_dims**-0.5).unsqueeze(2) @ keys.transpose(-2, -1)
    patches = weights.softmax(-1).squeeze(2)[..., backbone.num_extra_tokens :]
    height, width = images.shape[-2:]
    rows = round((patches.shape[-1] * height / width) ** 0.5)
    return patches.unflatten(-1, (rows, patches.shape[-1] // rows))


@torch.no_grad()
def global_similarity(global_features: Tensor, local_map: Tensor) -> Tensor:
    """Cosine similarity, (B, 1, h, w), of a map, (B, D, h, w), to the image's global representation, (B, D)."""
    return cosine_similarity(local_map, global_features[..., None, None], dim=1).unsqueeze(1)
