"""Last stage of a ResNet as the head of a C4 detector."""

from mmdet.registry import MODELS as DETECTION_MODELS
from mmengine.model import BaseModule
from mmpretrain.models.utils import build_norm_layer
from mmpretrain.registry import MODELS
from torch import Tensor, nn


@DETECTION_MODELS.register_module()
@MODELS.register_module()
class ResNetStage(BaseModule):
    """Last stage of any ResNet of MMPretrain, as ``shared_head`` of a detector on the previous map.

    MMDetection's ``ResLayer`` supports only the widths of ImageNet networks. Parameters have the names of the whole
    network, so that :class:`PretrainedBackbone` finds the weights.

    Args:
        network: Config of the whole ResNet.
        norm_cfg: Norm after the stage, as in MoCo's evaluation. Defaults to None, no norm.
    """

    def __init__(self, network: dict, norm_cfg: dict | None = None, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        whole = MODELS.build(network)
        self.name = whole.res_layers[-1]
        self.add_module(self.name, getattr(whole, self.name))
        self.norm = nn.Identity() if norm_cfg is None else build_norm_layer(norm_cfg, whole.feat_dim)

    def forward(self, maps: Tensor) -> Tensor:
        """Apply the stage, usually (N, C, h, w) -> (N, 2 C, h / 2, w / 2)."""
        return self.norm(getattr(self, self.name)(maps))
