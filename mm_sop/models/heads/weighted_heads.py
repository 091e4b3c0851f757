"""MMPretrain's contrastive and predictive heads with a weight for every sample."""

import torch
from mmpretrain.models.heads import ContrastiveHead, LatentPredictHead
from mmpretrain.registry import MODELS
from torch import Tensor
from torch.nn.functional import normalize


@MODELS.register_module()
class WeightedContrastiveHead(ContrastiveHead):
    """MMPretrain's ``ContrastiveHead`` with optional weights of samples, computed in fp32."""

    def loss(self, pos: Tensor, neg: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the cross-entropy of the positive among all candidates, averaged over the samples.

        Args:
            pos: Similarity to the positive, (N, 1).
            neg: Similarities to the negatives, (N, K); ``-inf`` for those to ignore.
            weight: Factor of each sample's loss, (N,). Defaults to None, 1 each.
        """
        with torch.autocast(pos.device.type, enabled=False):
            logits = torch.cat((pos.float(), neg.float()), dim=1) / self.temperature
            labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
            return self.loss_module(logits, labels, weight=weight)


@MODELS.register_module()
class WeightedLatentPredictHead(LatentPredictHead):
    """MMPretrain's ``LatentPredictHead`` with optional weights of samples and the loss in fp32.

    Weights need ``loss=dict(type='CosineSimilarityLoss')``.
    """

    def loss(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the mean distance between the predictions and the targets, which get no gradient.

        Args:
            input: Projections, (N, D).
            target: Projections to predict, (N, D).
            weight: Factor of each sample's loss, (N,). Defaults to None, 1 each.
        """
        prediction = self.predictor([input])[0]
        with torch.autocast(prediction.device.type, enabled=False):
            module, prediction, target = self.loss_module, prediction.float(), target.detach().float()
            if weight is None:
                return module(prediction, target)
            cosines = (normalize(prediction, dim=-1) * normalize(target, dim=-1)).sum(-1)
            return (weight * (module.shift_factor - module.scale_factor * cosines)).mean()
