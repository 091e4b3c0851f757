"""SimSiam and BYOL with weighted semantic positives."""

from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.selfsup import BYOL, SimSiam
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.functional import normalize

from mm_sop.models.selfsup.semantic_positives import SemanticPositives
from mm_sop.models.utils.averaged_models import FusedCosineEMA
from mm_sop.models.utils.diagnostics import key_diagnostics


class _SemanticSiamese(SemanticPositives):
    """Predicts the projection of one view from the other, in both directions."""

    loss_factor: float
    backbone: nn.Module
    neck: nn.Module
    head: Any

    def loss(self, inputs: Sequence[Tensor], data_samples: Sequence[DataSample], **kwargs) -> dict[str, Tensor]:
        """Compute ``loss`` and diagnostics from two views, (B, C, H, W) each, or three in the mode ``'joint'``."""
        terms = self.positive_terms(inputs, data_samples)
        projections = [self.neck(self.backbone(view))[0] for view in inputs]
        targets = self.encode_targets(inputs, projections)
        losses = []
        for term in terms:
            forth = self.head.loss(projections[0], targets[term.view], **term.options)
            back = self.head.loss(projections[term.view], targets[0], **term.options)
            losses.append(self.loss_factor * (forth + back))
        keys = normalize(targets[1].detach().float(), dim=1)
        return dict(loss=sum(losses[1:], losses[0]), **key_diagnostics(keys))

    def encode_targets(self, inputs: Sequence[Tensor], projections: Sequence[Tensor]) -> Sequence[Tensor]:
        """Projections to predict, one per view."""
        raise NotImplementedError


@MODELS.register_module()
class SemanticSimSiam(_SemanticSiamese, SimSiam):
    """SimSiam for the data of SePP.

    With ``semantic_weight=1`` and two views it equals MMPretrain's ``SimSiam`` in float32 bit for bit. In SePP's mode
    ``'joint'`` the losses of both pairs of views are added.

    Args:
        head (dict): A ``WeightedLatentPredictHead`` where weights are needed, else any predictive head.
        **kwargs: Arguments of :class:`mmpretrain.models.SimSiam`, and ``semantic_weight``.
    """

    loss_factor = 0.5

    def encode_targets(self, inputs: Sequence[Tensor], projections: Sequence[Tensor]) -> Sequence[Tensor]:
        """The projections themselves; the head stops their gradient."""
        return projections


@MODELS.register_module()
class SemanticBYOL(_SemanticSiamese, BYOL):
    """BYOL for the data of SePP.

    With ``semantic_weight=1`` and two views it equals MMPretrain's ``BYOL`` in float32 bit for bit. In SePP's mode
    ``'joint'`` the losses of both pairs of views are added. As in MMPretrain, the target network is updated in the
    forward pass; if gradients are accumulated, in the first iteration of a step
    (:func:`mm_sop.engine.runner.pace_averaged_models`).

    Args:
        head (dict): A ``WeightedLatentPredictHead`` where weights are needed, else any predictive head.
        **kwargs: Arguments of :class:`mmpretrain.models.BYOL`, and ``semantic_weight``.
    """

    loss_factor = 2.0
    target_net: Any

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.target_net = FusedCosineEMA(self.target_net.module, self.target_net.momentum)

    @torch.no_grad()
    def encode_targets(self, inputs: Sequence[Tensor], projections: Sequence[Tensor]) -> Sequence[Tensor]:
        """Update the target network and return its projections."""
        self.target_net.update_parameters(nn.Sequential(self.backbone, self.neck))
        return [self.target_net(view)[0] for view in inputs]
