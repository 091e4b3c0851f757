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
        scales: Resolution of each result relative to its map: 4, 2, 1 or 0.5.
        reduce_channels: Whether transposed convolutions halve the channels.
        norm_cfg: Norm between two transposed convolutions. Defaults to LayerNorm over channels.

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
        """Rescale one map (B, C, h, w) for every scale, or a single one for all, to (B, ., scale h, scale w) each."""
        maps = list(maps) * len(self.layers) if len(maps) == 1 else maps
        return tuple(layer(map_) for layer, map_ in zip(self.layers, maps, strict=True))


@DETECTION_MODELS.register_module()
@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Pyramid from the last map of a plain transformer, of "Exploring Plain Vision Transformer Backbones for Object
    Detection" (ViTDet, arXiv 2203.16527), section 3.

    The map is rescaled to ``scales`` with fewer channels at higher resolution; a 1x1 and a 3x3 convolution, each with a
    norm, by default LayerNorm over channels, give all levels ``out_channels``. Further levels, up to ``num_outs``,
    subsample the previous one by 2.

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
        """Build the levels, (B, ``out_channels``, ., .), the finest first, from the last map, (B, C, h, w)."""
        levels = [conv(map_) for conv, map_ in zip(self.convs, self.rescale(maps[-1:]), strict=True)]
        while len(levels) < self.num_outs:
            levels.append(max_pool2d(levels[-1], 1, stride=2))
        return tuple(levels)
