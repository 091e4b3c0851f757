"""Feature pyramids from the single-resolution maps of a plain vision transformer."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule, build_norm_layer
from mmdet.registry import MODELS as DETECTION_MODELS
from mmengine.model import BaseModule, ModuleList, Sequential
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

_LAYER_NORM = dict(type='mmpretrain.LN2d', eps=1e-6)


@DETECTION_MODELS.register_module()
@MODELS.register_module()
class RescaledMaps(BaseModule):
    """Rescales maps to several resolutions by transposed convolutions or max-pooling.

    BEiT and iBOT evaluate dense tasks with the maps of four blocks, rescaled without a change of channels and followed
    by a pyramid such as FPN; their norm is ``norm_cfg=dict(type='SyncBN')``.

    Args:
        in_channels: Channels of the maps.
        scales: Resolution of each result relative to its map: 4, 2, 1 or 0.5.
        reduce_channels: Whether transposed convolutions halve the channels. Defaults to False.
        norm_cfg: Norm between two transposed convolutions. Defaults to LayerNorm over channels.
        init_cfg: Initialization.

    Attributes:
        out_channels: Channels of each result.

    Raises:
        ValueError: A scale is not supported.
    """

    def __init__(
        self,
        in_channels: int,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        reduce_channels: bool = False,
        norm_cfg: dict = _LAYER_NORM,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not set(scales) <= {4, 2, 1, 0.5}:
            raise ValueError(f'scales={tuple(scales)}: expected 4, 2, 1 or 0.5')
        divisor = 2 if reduce_channels else 1
        half, quarter = in_channels // divisor, in_channels // divisor**2
        self.out_channels = [{4.0: quarter, 2.0: half}.get(scale, in_channels) for scale in scales]
        self.layers = ModuleList(self._build(scale, in_channels, half, quarter, norm_cfg) for scale in scales)

    @staticmethod
    def _build(scale: float, full: int, half: int, quarter: int, norm_cfg: dict) -> nn.Module:
        if scale == 1:
            return nn.Identity()
        if scale == 0.5:
            return nn.MaxPool2d(2)
        layers: list[nn.Module] = [nn.ConvTranspose2d(full, half, 2, stride=2)]
        if scale == 4:
            norm = build_norm_layer(norm_cfg, half)[1]
            layers += [norm, nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, stride=2)]
        return Sequential(*layers)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Rescale the maps.

        Args:
            maps: One map (B, C, h, w) for every scale, or a single one for all.

        Returns:
            A map for each scale, (B, ``out_channels``, scale h, scale w).
        """
        maps = list(maps) * len(self.layers) if len(maps) == 1 else maps
        return tuple(layer(map_) for layer, map_ in zip(self.layers, maps, strict=True))


@DETECTION_MODELS.register_module()
@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Pyramid from the last map of a plain transformer, of "Exploring Plain Vision Transformer Backbones for Object
    Detection" (ViTDet, arXiv 2203.16527), section 3.

    The map is rescaled with fewer channels at higher resolution; a 1x1 and a 3x3 convolution, each with a norm, give
    all levels the same channels. Further levels subsample the previous one by 2.

    Args:
        in_channels: Channels of the map.
        out_channels: Channels of the levels. Defaults to 256.
        scales: Resolution of the levels relative to the map. Defaults to (4, 2, 1, 0.5).
        num_outs: Number of levels. Defaults to 5.
        norm_cfg: Norm. Defaults to LayerNorm over channels.
        init_cfg: Initialization.

    Raises:
        ValueError: There are more scales than levels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        num_outs: int = 5,
        norm_cfg: dict = _LAYER_NORM,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_outs < len(scales):
            raise ValueError(f'num_outs={num_outs} is less than the number of scales, {len(scales)}')
        self.num_outs = num_outs
        self.rescale = RescaledMaps(in_channels, scales, True, norm_cfg)
        self.convs = ModuleList(
            Sequential(
                ConvModule(channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None),
                ConvModule(out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=None),
            )
            for channels in self.rescale.out_channels
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Build the pyramid.

        Args:
            maps: Maps of the backbone; the last one, (B, C, h, w), is used.

        Returns:
            The levels, (B, ``out_channels``, ., .), the finest first.
        """
        levels = [conv(map_) for conv, map_ in zip(self.convs, self.rescale(maps[-1:]), strict=True)]
        while len(levels) < self.num_outs:
            levels.append(max_pool2d(levels[-1], 1, stride=2))
        return tuple(levels)
