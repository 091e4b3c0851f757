"""MMPretrain's contrastive and predictive heads with a weight for every sample."""

import torch
from mmpretrain.models.heads import ContrastiveHead, LatentPredictHead
from mmpretrain.registry import MODELS
from torch import Tensor
from torch.nn.functional import normalize


@MODELS.register_module()
class WeightedContrastiveHead(ContrastiveHead):
    """``ContrastiveHead`` of MMPretrain, computed in fp32, whose samples may have weights."""

    def loss(self, pos: Tensor, neg: Tensor, weight: Tensor | None = None) -> Tensor:
        """Cross entropy of the positive among all.

        Args:
            pos: Similarity to the positive, (N, 1).
            neg: Similarities to the negatives, (N, K); ``-inf`` for those that do not count.
            weight: Weights of the samples, (N,). Defaults to None, 1 each.

        Returns:
            Mean over the N samples of weight times loss.
        """
        with torch.autocast(pos.device.type, enabled=False):
            logits = torch.cat((pos.float(), neg.float()), dim=1) / self.temperature
            labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
            return self.loss_module(logits, labels, weight=weight)


@MODELS.register_module()
class WeightedLatentPredictHead(LatentPredictHead):
    """``LatentPredictHead`` of MMPretrain, with its loss in fp32, whose samples may have weights.

    Weights need ``loss=dict(type='CosineSimilarityLoss')``.
    """

    def loss(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Distance between the prediction and the target, which gets no gradient.

        Args:
            input: Projections, (N, D).
            target: Projections to be predicted, (N, D).
            weight: Weights of the samples, (N,). Defaults to None, 1 each.

        Returns:
            Mean over the N samples of weight times loss.
        """
        prediction = self.predictor([input])[0]
        with torch.autocast(prediction.device.type, enabled=False):
            return self._distance(prediction.float(), target.detach().float(), weight)

    def _distance(self, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        module = self.loss_module
        if weight is None:
            return module(prediction, target)
        cosines = (normalize(prediction, dim=-1) * normalize(target, dim=-1)).sum(-1)
        return (weight * (module.shift_factor - module.scale_factor * cosines)).mean()
