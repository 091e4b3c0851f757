"""Projector and predictor for transformers."""

from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class MLPNeck(BaseModule):
    """Multi-layer perceptron with GELU and without BatchNorm, as ReSA uses with vision transformers.

    The output is not normalized. MMPretrain's ``NonLinearNeck``, for convolutional networks, always has BatchNorm.

    Args:
        pre_norm: Whether a LayerNorm comes first, as in ReSA's predictor.
        init_cfg: Initialization, by default Xavier-uniform weights and zero biases.

    Raises:
        ValueError: If there is no layer.
    """

    def __init__(
        self,
        in_channels: int,
        hid_channels: int = 2048,
        out_channels: int = 512,
        num_layers: int = 3,
        pre_norm: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='Xavier', layer='Linear', distribution='uniform'))
        if num_layers < 1:
            raise ValueError(f'num_layers must be at least 1, got {num_layers}')
        widths = [in_channels] + [hid_channels] * (num_layers - 1) + [out_channels]
        layers: list[nn.Module] = [nn.LayerNorm(in_channels, eps=1e-6)] if pre_norm else []
        for index in range(num_layers):
            layers += [nn.GELU()] if index else []
            layers.append(nn.Linear(widths[index], widths[index + 1]))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: tuple[Tensor]) -> tuple[Tensor]:
        """Map features, ((n, in_channels),) -> ((n, out_channels),), tuples as in MMPretrain's necks."""
        return (self.layers(features[-1]),)
