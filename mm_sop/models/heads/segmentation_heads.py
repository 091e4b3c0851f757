"""Heads that classify every position of a feature map."""

from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.functional import interpolate


class SegmentationHead(BaseModule):
    """Joins feature maps and classifies their positions with one linear layer; subclasses implement :meth:`join`.

    Args:
        in_channels: Widths of the maps.
        channels: Width of the joined map.
        loss: Loss of logits, (B, C, H, W), and labels, (B, H, W). Defaults to cross-entropy, averaged over the pixels
            that are not ignored.
        init_cfg: Initialization. Defaults to a normal distribution of standard deviation 0.01 for convolutions.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_classes: int,
        ignore_index: int = 255,
        loss: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='Normal', layer='Conv2d', std=0.01))
        self.in_channels = tuple(in_channels)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.loss_module = MODELS.build(loss or dict(type='mmdet.CrossEntropyLoss', avg_non_ignore=True))

    def join(self, features: Sequence[Tensor]) -> Tensor:
        """Join maps, (B, D, h, w) each, the finest first, to (B, ``channels``, h, w), of the size of the first."""
        raise NotImplementedError

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Classify all positions of maps, the finest first, with logits of the size of the first, (B, C, h, w).

        Raises:
            ValueError: The features are not maps of these widths.
        """
        shapes = [tuple(feature.shape) for feature in features]
        if [len(shape) for shape in shapes] != [4] * len(self.in_channels) or any(
            shape[1] != width for shape, width in zip(shapes, self.in_channels, strict=True)
        ):
            raise ValueError(
                f'{type(self).__name__} expects maps (B, D, h, w) of widths {self.in_channels}, got {shapes}: set '
                "in_channels and the backbone's out_indices alike; a vision transformer needs out_type='featmap'"
            )
        return self.classifier(self.join(features))

    def loss(self, features: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Compare the logits of maps, resized to the image, with its classes, (B, H, W): ``loss_seg``."""
        logits = resize(self(features).float(), labels.shape[-2:])
        return dict(loss_seg=self.loss_module(logits, labels.long(), ignore_index=self.ignore_index))


@MODELS.register_module()
class LinearSegmentationHead(SegmentationHead):
    """BatchNorm and a linear classifier on concatenated feature maps, as DINOv2 evaluates frozen encoders.

    ``norm_cfg`` replaces the BatchNorm. Other arguments are those of :class:`SegmentationHead`.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, norm_cfg: dict | None = None, **kwargs) -> None:
        channels = sum(in_channels)
        super().__init__(in_channels, channels, num_classes, **kwargs)
        self.norm = build_norm_layer(norm_cfg or dict(type='BN'), channels)[1]

    def join(self, features: Sequence[Tensor]) -> Tensor:
        """Resize the maps to one size, concatenate and normalize them."""
        return self.norm(torch.cat([resize(feature, features[0].shape[-2:]) for feature in features], dim=1))


@MODELS.register_module()
class FPNSegmentationHead(SegmentationHead):
    """Small decoder on a feature pyramid: a 3x3 convolution on every level, summed at the finest resolution.

    The semantic branch of `Panoptic Feature Pyramid Networks <https://arxiv.org/abs/1901.02446>`_ with one
    convolution per level instead of one per doubling of the size.

    Normalizes with BatchNorm unless ``norm_cfg`` is given. Other arguments are those of :class:`SegmentationHead`.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, channels: int = 128, norm_cfg: dict | None = None, **kwargs
    ) -> None:
        super().__init__(in_channels, channels, num_classes, **kwargs)
        norm_cfg = norm_cfg or dict(type='BN')
        self.convs = nn.ModuleList(
            ConvModule(width, channels, 3, padding=1, norm_cfg=norm_cfg) for width in in_channels
        )

    def join(self, features: Sequence[Tensor]) -> Tensor:
        """Convolve the levels and sum them at the size of the first."""
        size = features[0].shape[-2:]
        first, *others = (resize(conv(feature), size) for conv, feature in zip(self.convs, features, strict=True))
        return sum(others, first)


def resize(feature_map: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a map, (B, D, h, w), to a size (H, W) by bilinear interpolation."""
    return interpolate(feature_map, size=tuple(size), mode='bilinear', align_corners=False)
