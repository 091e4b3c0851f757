"""Projector of SOP."""

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.functional import normalize

from mm_sop.functional.precision import at_least_fp32


@MODELS.register_module()
class SOPNeck(BaseModule):
    """Multi-layer perceptron over single tokens, followed by L2 normalization.

    One neck serves [CLS] and patch tokens. It treats every token independently, so that only the tokens that a loss or
    a bank needs pass through it. The defaults are those of the released implementation: three layers, GELU, no
    normalization.

    Args:
        norm_cfg: Normalization after each hidden layer, for instance ``dict(type='BN1d')``. Batch statistics are those
            of the tokens of one call. Defaults to None.
        norm_output: Whether to normalize the output as well, before the L2 normalization.
        init_cfg: Initialization, by default truncated normal weights of standard deviation 0.02 and zero biases.
    """

    def __init__(
        self,
        in_channels: int,
        hid_channels: int = 2048,
        out_channels: int = 256,
        num_layers: int = 3,
        norm_cfg: dict | None = None,
        norm_output: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02, bias=0))
        if num_layers < 1:
            raise ValueError(f'num_layers must be at least 1, got {num_layers}')
        if norm_output and norm_cfg is None:
            raise ValueError('norm_output=True needs norm_cfg')
        widths = [in_channels] + [hid_channels] * (num_layers - 1) + [out_channels]
        layers: list[nn.Module] = []
        for index, width in enumerate(widths[1:]):
            is_last = index == num_layers - 1
            layers.append(nn.Linear(widths[index], width))
            if norm_cfg is not None and (not is_last or norm_output):
                layers.append(build_norm_layer(norm_cfg, width)[1])
            if not is_last:
                layers.append(nn.GELU())
        self.layers = nn.Sequential(*layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens, (n, in_channels) -> unit rows in fp32, (n, out_channels)."""
        return normalize(at_least_fp32(self.layers(tokens)), dim=-1, eps=1e-6)
