"""Classifiers on frozen features that are tried on pictures of another kind than they learnt from."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from mmengine.dist import get_comm_device, get_dist_info
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.data import Dataset, Subset

from mm_sop.evaluation.features import extract_features, gather_features
from mm_sop.evaluation.logistic import fit_logistic
from mm_sop.evaluation.protocol import EvaluationContext
from mm_sop.functional.knn import knn_scores

CLASSIFIERS = ('knn', 'linear')

# Pictures of one process that are measured between two savings.
_BLOCK = 1024


class FrozenClassifiers:
    """A vote of the nearest neighbours and a linear head, both on the features of the training pictures.

    Args:
        features: Training features, (N, D).
        labels: Their classes, int64, (N,).
        num_neighbors: Neighbours that vote, at most N of them.
        penalty: Weight of the penalty of the linear head, see :func:`fit_logistic`.

    Attributes:
        weight: Weights of the linear head for plain features, (C, D).
        bias: Its biases, (C,).
    """

    def __init__(self, features: Tensor, labels: Tensor, num_neighbors: int = 20, penalty: float = 1e-4) -> None:
        self.features, self.labels = features, labels.to(features.device)
        self.num_neighbors = min(num_neighbors, len(features))
        self.num_classes = int(labels.max()) + 1
        mean, deviation = features.mean(0), features.std(0, correction=0)
        deviation = deviation.where(deviation > 0, 1.0)
        weight, bias = fit_logistic((features - mean) / deviation, self.labels, self.num_classes, penalty)
        self.weight = weight / deviation
        self.bias = bias - self.weight @ mean

    def logits(self, features: Tensor) -> Tensor:
        """Logits of the linear head, (n, C), with gradients."""
        return linear(features, self.weight, self.bias)

    @torch.no_grad()
    def predict(self, features: Tensor, groups: np.ndarray | None = None, restrict: bool = False) -> dict[str, Tensor]:
        """Classify.

        Args:
            features: Features, (n, D).
            groups: Class that every training class stands for, -1 for none, see :func:`match_classes`. Defaults to
                None, itself.
            restrict: Whether only classes that stand for one may be answered; else an answer without one is -1.

        Returns:
            Predictions of the :data:`CLASSIFIERS`, int64, (n,), on the CPU.
        """
        k = self.num_neighbors
        votes = knn_scores(self.features, self.labels, features, k, num_classes=self.num_classes)[k]
        answers = dict(knn=votes, linear=self.logits(features))
        if groups is None:
            return {name: each.argmax(1).cpu() for name, each in answers.items()}
        groups = torch.from_numpy(groups)
        allowed = (groups >= 0).to(features.device) | (not restrict)
        return {name: groups[each.where(allowed, -torch.inf).argmax(1).cpu()] for name, each in answers.items()}


def map_pictures(
    context: EvaluationContext, dataset: Dataset, measure: Callable[[dict], Mapping[str, Tensor]], part: str
) -> dict[str, Tensor]:
    """Measure something for every picture, shared by all processes and resumed after an interruption.

    Args:
        context: What the evaluation runs with.
        dataset: Data set.
        measure: Maps a collated batch to named figures, (B, n) each.
        part: What is measured, see :meth:`EvaluationContext.part`.

    Returns:
        Figures by name, (N, n), fp32, on the CPU of every process.

    Raises:
        ValueError: There are fewer pictures than processes.
    """
    rank, world_size = get_dist_info()
    if len(dataset) < world_size:
        raise ValueError(f'{len(dataset)} pictures cannot be shared by {world_size} processes: give more pictures')
    share = range(rank, len(dataset), world_size)
    blocks = []
    for start in range(0, len(share), _BLOCK):
        chosen = Subset(dataset, share[start : start + _BLOCK])
        blocks.append(context.part(f'{part}_{start}', partial(_measure_block, context, chosen, measure)))
        print_log(f'Measured {start + len(chosen):,} of {len(share):,} pictures ({part})', logger='current')
    device = get_comm_device() if world_size > 1 else torch.device('cpu')
    shares = {name: torch.from_numpy(np.concatenate([block[name] for block in blocks])) for name in blocks[0]}
    return {name: gather_features(each.to(device), len(dataset)).cpu() for name, each in shares.items()}


def _measure_block(context: EvaluationContext, block: Dataset, measure: Callable) -> dict[str, np.ndarray]:
    encode = partial(_to_cpu, measure)
    found = extract_features(encode, block, context.batch_size, context.num_workers)
    return {name: each.numpy() for name, each in found.items()}


def _to_cpu(measure: Callable, batch: dict) -> dict[str, Tensor]:
    return {name: each.float().cpu() for name, each in measure(batch).items()}
