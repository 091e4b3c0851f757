"""Projector and prototypes of DINO."""

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from mm_sop.models.necks.sop_neck import SOPNeck


class PrototypeLayer(nn.Module):
    """Weight-normalized linear layer without bias: scores are cosines, times the length of the prototype if learned."""

    def __init__(self, in_channels: int, num_prototypes: int, learn_length: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_prototypes, in_channels))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.length = nn.Parameter(torch.ones(num_prototypes, 1)) if learn_length else None

    def forward(self, embeddings: Tensor) -> Tensor:
        """Compute the scores of the prototypes, (m, d) -> (m, K)."""
        weight = normalize(self.weight, dim=-1)
        return linear(embeddings, weight if self.length is None else self.length * weight)


@MODELS.register_module()
class DINONeck(BaseModule):
    """Multi-layer perceptron with GELU, L2 normalization and prototypes ("DINO head" in the paper's code).

    Like MMPretrain's necks it takes and returns a tuple of one tensor.

    Args:
        bottleneck_channels: Width of the unit embeddings.
        num_layers: Linear layers before the prototypes.
        norm_cfg: Normalization after each hidden layer; DINO uses it with ResNets, not with transformers.
        learn_length: Whether to learn the lengths of the prototypes; DINO keeps them at 1.
    """

    def __init__(
        self,
        in_channels: int,
        hid_channels: int = 2048,
        bottleneck_channels: int = 256,
        num_prototypes: int = 65536,
        num_layers: int = 3,
        norm_cfg: dict | None = None,
        learn_length: bool = False,
    ) -> None:
        super().__init__()
        self.projector = SOPNeck(in_channels, hid_channels, bottleneck_channels, num_layers, norm_cfg)
        self.prototypes = PrototypeLayer(bottleneck_channels, num_prototypes, learn_length)

    def forward(self, representations: tuple[Tensor]) -> tuple[Tensor]:
        """Compute the scores of the prototypes, (m, in_channels) -> (m, K)."""
        return (self.prototypes(self.projector(representations[0])),)
