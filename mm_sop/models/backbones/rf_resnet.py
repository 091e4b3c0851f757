"""ResNet with a bounded receptive field."""

from collections.abc import Sequence

from mmpretrain.models import NonLinearNeck, ResNet
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.functional import relu

from mm_sop.functional import check_receptive_field

ARCHITECTURES = dict(
    rf99_even=dict(depth=50, kept=(2, 2, 2, 0), receptive_field=99),
    rf99_prefix=dict(depth=50, kept=(3, 4, 0, 0), style='caffe', receptive_field=99),
    rf99_bag=dict(depth=50, kept=(3, 4, 1, 0), stem='no_pool', strides=(2, 2, 2, 1), receptive_field=99),
    rf99_param_match=dict(depth=50, kept=(2, 2, 3, 0), strides=(1, 2, 1, 1), receptive_field=99),
    rf33_bag=dict(depth=50, kept=(1, 1, 1, 1), stem='small', strides=(2, 2, 2, 1), receptive_field=33),
    rf29_r18=dict(depth=18, kept=(4, 4, 1, 0), stem='small', receptive_field=29),
)
"""Layouts by name, see :class:`RFResNet`."""

_STEMS = ('imagenet', 'no_pool', 'small')


@MODELS.register_module()
class RFResNet(ResNet):
    """ResNet with a bounded receptive field, of CO-SSL ("Seeing the Whole in the Parts", arXiv 2501.02860).

    MMPretrain's ResNet with most 3x3 convolutions replaced by 1x1 convolutions, and the same residuals, normalization,
    widths, depth and initialization. After average pooling an MLP turns the mean of the cells into the global
    representation: it belongs to the encoder, is loaded with it, and is frozen with the last stage. The layout in the
    paper's figure is not public; the table lists layouts with the same field of 99 pixels, and smaller ones.

    The field is computed from the built network and compared with the declared one.

    ================== ============================================================== ======= =====================
    ``arch``           layout                                                         field   map at 224 pixels
    ================== ============================================================== ======= =====================
    rf99_even          first two blocks of stages 1 to 3                              99      7 x 7
    rf99_prefix        stages 1 and 2 whole, strides on the first 1x1 ("caffe")       99      7 x 7
    rf99_bag           no max-pooling, strides 2, 2, 2, 1, as in BagNet               99      14 x 14
    rf99_param_match   strides 1, 2, 1, 1: 23.75 M parameters, the paper says 23.7 M  99      28 x 28
    rf33_bag           one block in each stage, 3x3 stem, as in BagNet-33             33      28 x 28
    rf29_r18           ResNet-18, stages 1 and 2 and one convolution, for 64 pixels   29      8 x 8 (at 64)
    ================== ============================================================== ======= =====================

    Args:
        arch: Name of a layout, or a dict with ``depth``, ``kept`` and optionally ``stem``, ``strides``, ``style``
            and ``receptive_field``. ``kept`` tells for each stage which of its 3x3 convolutions stay (a bottleneck has
            one, a basic block two): how many of the first ones, or a sequence of booleans. ``stem`` is
            ``'imagenet'`` (7x7, stride 2, max-pooling), ``'no_pool'`` (without max-pooling) or ``'small'`` (3x3,
            stride 1). Other arguments are those of ResNet.
        mlp: ``num_layers`` (default 2), ``hid_channels`` (default: width of the map) and ``shortcut`` (default False:
            add the pooled vector and end with ReLU) of the MLP after pooling, whose output is as wide as the map; None
            for no MLP.
        receptive_field: Declared field in pixels, instead of that of ``arch``.
        zero_init_residual: As for ResNet; off, because cells of a new network would see no context.
        **kwargs: Arguments of :class:`mmpretrain.models.ResNet`.

    Raises:
        ValueError: An argument is unknown or out of range, or the field of the network differs from the declared one.
    """

    conv1: nn.Conv2d

    def __init__(
        self,
        arch: str | dict = 'rf99_even',
        mlp: dict | None = dict(num_layers=2),  # noqa: B006
        receptive_field: int | None = None,
        zero_init_residual: bool = False,
        **kwargs,
    ) -> None:
        layout = _parse_arch(arch)
        kept, declared = layout.pop('kept'), layout.pop('receptive_field', None)
        self.stem_type = layout.pop('stem', 'imagenet')
        super().__init__(**layout, zero_init_residual=zero_init_residual, **kwargs)
        self._limit_field(kept)
        self.mlp, self.mlp_shortcut = self._build_mlp(mlp)
        self.receptive_field, self.jump = check_receptive_field(self, receptive_field or declared)
        # The parent froze parts before the layers were replaced, and `norm_eval` acts in `train` only.
        self.train(self.training)

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        if self.stem_type != 'imagenet':
            self.maxpool = nn.Identity()
        if self.stem_type == 'small':
            self.conv1 = _with_kernel(self.conv1, 3, stride=1)

    def _limit_field(self, kept: Sequence[int | Sequence[bool]]) -> None:
        """Turn the 3x3 convolutions that are not kept into 1x1 convolutions."""
        if len(kept) != self.num_stages:
            raise ValueError(f'kept needs one entry for each of the {self.num_stages} stages, got {kept}')
        for name, entry in zip(self.res_layers, kept, strict=True):
            convolutions = [
                (block, child_name)
                for block in getattr(self, name)
                for child_name, child in block.named_children()
                if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3)
            ]
            total = len(convolutions)
            mask = [index < entry for index in range(total)] if isinstance(entry, int) else list(entry)
            if len(mask) != total or (isinstance(entry, int) and not 0 <= entry <= total):
                raise ValueError(
                    f'{name} has {total} 3x3 convolutions; kept must be 0 to {total} or {total} booleans: {entry}'
                )
            for (block, child_name), stays in zip(convolutions, mask, strict=True):
                if not stays:
                    setattr(block, child_name, _with_kernel(getattr(block, child_name), 1))

    def _build_mlp(self, mlp: dict | None) -> tuple[nn.Module | None, bool]:
        if mlp is None:
            return None, False
        if self.num_stages - 1 not in self.out_indices:
            raise ValueError(f'the MLP needs the map of the last stage, out_indices are {self.out_indices}')
        options = dict(dict(num_layers=2, hid_channels=self.feat_dim, shortcut=False), **mlp)
        shortcut = options.pop('shortcut')
        norm_cfg = dict(self.norm_cfg)
        norm_cfg['type'] = dict(BN='BN1d', BN2d='BN1d').get(norm_cfg['type'], norm_cfg['type'])
        options.update(in_channels=self.feat_dim, out_channels=self.feat_dim, with_avg_pool=False, norm_cfg=norm_cfg)
        return NonLinearNeck(**options), shortcut

    def _freeze_stages(self) -> None:
        if self.frozen_stages > self.num_stages:
            raise ValueError(f'frozen_stages={self.frozen_stages}: the network has {self.num_stages} stages')
        super()._freeze_stages()
        # ResNet calls this before there is an MLP.
        if self.frozen_stages >= self.num_stages and (mlp := getattr(self, 'mlp', None)) is not None:
            mlp.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'RFResNet':
        """Set the mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode images, (B, C, H, W).

        Returns:
            Maps of the stages in ``out_indices``, (B, D, h, w), and with an MLP the global vector of the last one,
            (B, D).
        """
        maps = super().forward(x)
        if self.mlp is None:
            return maps
        pooled = maps[-1].mean((2, 3))
        vector = self.mlp((pooled,))[0]
        return *maps, relu(pooled + vector) if self.mlp_shortcut else vector


def _parse_arch(arch: str | dict) -> dict:
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            raise ValueError(f'arch must be one of {", ".join(ARCHITECTURES)} or a dict, got {arch!r}')
        arch = ARCHITECTURES[arch]
    missing = {'depth', 'kept'} - arch.keys()
    unknown = arch.keys() - {'depth', 'kept', 'stem', 'strides', 'style', 'receptive_field'}
    if missing or unknown or arch.get('stem', 'imagenet') not in _STEMS:
        raise ValueError(
            f"arch needs 'depth' and 'kept' and may have 'stem' (one of {_STEMS}), 'strides', 'style' and "
            f"'receptive_field', got {dict(arch)}"
        )
    return dict(arch)


def _with_kernel(conv: nn.Conv2d, kernel: int, stride: int | None = None) -> nn.Conv2d:
    """The same convolution with another kernel."""
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        kernel,
        stride=conv.stride if stride is None else stride,  # type: ignore[arg-type]  # a pair
        padding=kernel // 2,
        bias=conv.bias is not None,
    )
