"""Convolutional stem of a vision transformer."""

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn


class ConvStem(BaseModule):
    """Stack of 3x3 convolutions with stride 2 and a final 1x1 convolution instead of one patch convolution.

    From "Early Convolutions Help Transformers See Better" (Xiao et al., 2021), which reports faster convergence.
    Neighboring patches share pixels, so a mask hides slightly less than its patches.

    Args:
        patch_size: Stride of the whole stem, a power of 2.
        out_size: Size of the token grid for the default image, (h, w).

    Raises:
        ValueError: If the patch size is not a power of 2.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int, out_size: tuple[int, int]) -> None:
        super().__init__()
        num_layers = patch_size.bit_length() - 1
        if patch_size < 2 or patch_size != 2**num_layers:
            raise ValueError(f'a convolutional stem needs a patch size that is a power of 2, got {patch_size}')
        self.init_out_size = out_size
        widths = [max(8, embed_dims // 2 ** (num_layers - 1 - index)) for index in range(num_layers)]
        layers = [
            ConvModule(inputs, width, 3, stride=2, padding=1, norm_cfg=dict(type='BN'))
            for inputs, width in zip([in_channels, *widths], widths, strict=False)
        ]
        self.layers = Sequential(*layers, nn.Conv2d(widths[-1], embed_dims, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Encode images, (B, C, H, W) -> tokens, (B, h w, D), and the grid's size."""
        if self.training and images.device.type == 'cpu':
            # Convolutions and BatchNorm are faster with channels last on a CPU; results differ by rounding.
            images = images.contiguous(memory_format=torch.channels_last)
        grid = self.layers(images)
        return grid.flatten(2).transpose(1, 2), tuple(grid.shape[-2:])
