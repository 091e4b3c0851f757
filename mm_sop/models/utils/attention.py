"""Attention kernel."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(query: Tensor, key: Tensor, value: Tensor, **kwargs) -> Tensor:
    """Scaled dot-product attention, in fp32 where bf16 would be slower.

    PyTorch's CPU kernel is many times slower backward in bf16 than in fp32, so with it bf16 training of a small
    transformer takes twice as long as it should.

    Args:
        query: (B, heads, L, D).
        key: (B, heads, L, D).
        value: (B, heads, L, D).
        **kwargs: Arguments of :func:`torch.nn.functional.scaled_dot_product_attention`.

    Returns:
        (B, heads, L, D), in the type of the query.
    """
    if query.device.type != 'cpu' or query.dtype is not torch.bfloat16:
        return scaled_dot_product_attention(query, key, value, **kwargs)
    with torch.autocast('cpu', enabled=False):
        output = scaled_dot_product_attention(query.float(), key.float(), value.float(), **kwargs)
    return output.to(query.dtype)
