"""ResNet for small images with a margin."""

from mmpretrain.models import ResNet_CIFAR
from mmpretrain.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class PaddedResNetCIFAR(ResNet_CIFAR):
    """ResNet for small images that first adds a margin of zeros, as ReSA's released code does for CIFAR.

    With a margin ``extra_pad`` of one pixel, images of 32 pixels give maps of sides 34, 34, 17, 9 and 5 instead of 32,
    32, 16, 8 and 4. Other arguments are those of ``ResNet_CIFAR``.
    """

    def __init__(self, depth: int, extra_pad: int = 1, **kwargs) -> None:
        super().__init__(depth, **kwargs)
        self.margin = nn.ZeroPad2d(extra_pad)
        # `norm_eval` acts in `train` only.
        self.train(self.training)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the chosen stages, (B, C, h, w) each, from images, (B, 3, H, W)."""
        return super().forward(self.margin(images))
