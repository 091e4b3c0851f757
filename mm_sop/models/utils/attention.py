"""Attention kernels: plain, and within the windows of a token grid."""

import torch
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


def attend(query: Tensor, key: Tensor, value: Tensor, **kwargs) -> Tensor:
    """Scaled dot-product attention, in fp32 where bf16 would be slower.

    The backward pass of PyTorch's CPU kernel is many times slower in bf16 than in fp32; bf16 training of a small
    transformer would take twice as long. All tensors are (B, heads, L, D); the result has the type of the query.
    """
    if query.device.type != 'cpu' or query.dtype is not torch.bfloat16:
        return scaled_dot_product_attention(query, key, value, **kwargs)
    with torch.autocast('cpu', enabled=False):
        output = scaled_dot_product_attention(query.float(), key.float(), value.float(), **kwargs)
    return output.to(query.dtype)


class UnboundAttention(MultiheadAttention):
    """MMPretrain's attention, whose backward pass writes the gradients of query, key and value into one tensor.

    The parent selects each of them from one tensor: its backward pass fills three tensors of that size and adds them.
    """

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Attend, (B, L, D) -> (B, L, D), or (n, D) at some positions of all images' tokens, (n,)."""
        # (B, L, 3 D) -> (B, L, 3, heads, d) -> three times (B, heads, L, d)
        parts = self.qkv(tokens).unflatten(-1, (3, self.num_heads, self.head_dims)).unbind(2)
        query, key, value = (part.transpose(1, 2) for part in parts)
        dropout = self.attn_drop if self.training else 0.0
        output = self.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        output = output.transpose(1, 2).flatten(2)
        if positions is not None:
            output = output.flatten(0, 1)[positions]
        return self.out_drop(self.gamma1(self.proj_drop(self.proj(output))))


class WindowAttention:
    """Attention kernel in which a patch attends to the patches of its window and the [CLS] token only.

    The grid is split into windows of equal size; where they do not divide it, windows at the right and bottom border
    are padded with positions that nothing attends to. The [CLS] token attends to every window separately and takes the
    mean, weighted by the number of patches. A grid within one window gives plain attention.

    Args:
        window_size: Side of a window in patches.

    Attributes:
        grid: Size of the token grid, (h, w), set before each call.
    """

    def __init__(self, window_size: int) -> None:
        if window_size < 1:
            raise ValueError(f'window_size must be at least 1, got {window_size}')
        self.window_size = window_size
        self.grid: tuple[int, int] = (0, 0)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **kwargs) -> Tensor:
        """Attend; all tensors are (B, heads, 1 + h w, D), the [CLS] token first."""
        height, width = self.grid
        if max(height, width) <= self.window_size:
            return attend(query, key, value, **kwargs)
        sides = min(self.window_size, height), min(self.window_size, width)
        mask = window_mask(self.grid, sides, query.device)
        # `len(query)` would be a constant in traced programs.
        batch_size = query.shape[0]
        windows = [self._split(tokens, sides) for tokens in (query, key, value)]
        if height % sides[0] or width % sides[1]:
            # The batch axis is (image, window), with the windows of an image next to each other.
            kwargs['attn_mask'] = mask.repeat(batch_size, 1)[:, None, None]
        return self._merge(attend(*windows, **kwargs), batch_size, mask, sides)

    def _split(self, tokens: Tensor, sides: tuple[int, int]) -> Tensor:
        """(B, heads, 1 + h w, D) -> (B n, heads, 1 + tokens of a window, D)."""
        patches = partition(tokens[:, :, 1:].unflatten(2, self.grid), sides)
        cls = tokens[:, None, :, :1].expand(-1, patches.shape[1], -1, -1, -1)
        return torch.cat([cls, patches], dim=3).flatten(0, 1)

    def _merge(self, windows: Tensor, batch_size: int, mask: Tensor, sides: tuple[int, int]) -> Tensor:
        windows = windows.unflatten(0, (batch_size, -1))
        weights = mask[:, 1:].sum(1) / mask[:, 1:].sum()
        # b batch, n window, h head, d channel
        cls = torch.einsum('bnhd,n->bhd', windows[:, :, :, 0], weights.to(windows.dtype))
        patches = merge(windows[:, :, :, 1:], self.grid, sides)
        return torch.cat([cls.unsqueeze(2), patches.flatten(2, 3)], dim=2)


def partition(maps: Tensor, sides: tuple[int, int]) -> Tensor:
    """Split maps into windows of sides (p, q) in row-major order, padded with zeros at the right and at the bottom.

    (B, heads, h, w, D) -> (B, n, heads, p q, D).
    """
    height, width = (-(-size // side) for size, side in zip(maps.shape[2:4], sides, strict=True))
    bottom, right = height * sides[0] - maps.shape[2], width * sides[1] - maps.shape[3]
    maps = pad(maps, (0, 0, 0, right, 0, bottom))
    maps = maps.unflatten(3, (width, sides[1])).unflatten(2, (height, sides[0]))
    # b batch, a head, i and j window, p and q position in it, d channel: baipjqd -> bijapqd
    return maps.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(1, 2)


def merge(windows: Tensor, grid: tuple[int, int], sides: tuple[int, int]) -> Tensor:
    """Undo :func:`partition` of maps of the size ``grid``."""
    height = -(-grid[0] // sides[0])
    windows = windows.unflatten(3, sides).unflatten(1, (height, -1))
    # The inverse: bijapqd -> baipjqd
    maps = windows.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
    return maps[:, :, : grid[0], : grid[1]]


def window_mask(grid: tuple[int, int], sides: tuple[int, int], device: torch.device) -> Tensor:
    """Mask of the positions of each window that are not padding, (n, 1 + p q); the first one is the [CLS] token."""
    inside = partition(torch.ones(1, 1, *grid, 1, device=device), sides)[0, :, 0, :, 0] > 0
    return pad(inside, (1, 0), value=True)
