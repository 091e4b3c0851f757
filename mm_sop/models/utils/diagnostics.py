"""Diagnostics of whether a self-supervised run is learning or has collapsed; none enters the objective.

Their names avoid the word "loss": MMEngine sums every entry that contains it into the objective.
"""

import math

import torch
from torch import Tensor

from mm_sop.functional import local_global_similarity, redundancy


@torch.no_grad()
def support_diagnostics(cosines: Tensor) -> dict[str, Tensor]:
    """Mean and largest cosine of supports to their anchors, (T, M, k); empty without supports."""
    if cosines.shape[-1] == 0:
        return {}
    return dict(support_cosine=cosines.mean(), support_cosine_max=cosines.max())


@torch.no_grad()
def key_diagnostics(keys: Tensor) -> dict[str, Tensor]:
    """Signs of collapse in the keys of a batch, unit rows (B, d).

    Returns:
        ``key_cosine``, the mean cosine between different keys: 1 when all are alike; ``embedding_std``, the mean
        standard deviation of a channel: 0 when all are alike, about 1 / sqrt(d) when they are spread.
    """
    total = keys.sum(0).square().sum()
    num_pairs = max(1, len(keys) * (len(keys) - 1))
    return dict(key_cosine=(total - len(keys)) / num_pairs, embedding_std=keys.std(0, correction=0).mean())


@torch.no_grad()
def locality_diagnostics(local_map: Tensor) -> dict[str, Tensor]:
    """Similarity of the cells of local maps, (B, C, h, w).

    Returns:
        ``redundancy``, the mean cosine between different cells, and ``local_global_cosine``, the mean cosine between
        cells and the pooled map.
    """
    return dict(
        redundancy=redundancy(local_map).mean(),
        local_global_cosine=local_global_similarity(local_map, local_map.mean((2, 3))).mean(),
    )


@torch.no_grad()
def assignment_diagnostics(student_log_probs: Tensor, teacher_probs: Tensor, num_tasks: int) -> dict[str, Tensor]:
    """Entropy and diversity of the targets, and how often the student agrees with them.

    Args:
        student_log_probs: Global views, (2, T B, M), tasks outermost in the batch.
        teacher_probs: The same views, (2, T B, M).
        num_tasks: Number T of tasks.

    Returns:
        ``target_entropy`` (mean entropy of a target), ``mean_target_entropy`` (entropy of the mean target of a task),
        both in nats and at most ``max_entropy`` = ln M; ``distinct_targets`` (fraction of prototypes that are the
        maximum of some target); ``agreement`` (fraction of student views whose maximum is that of the other teacher
        view).
    """
    num_prototypes = teacher_probs.shape[-1]
    by_task = teacher_probs.unflatten(1, (num_tasks, -1))
    winners = by_task.argmax(-1)
    used = teacher_probs.new_zeros(num_tasks, num_prototypes)
    used.scatter_(1, winners.transpose(0, 1).flatten(1), 1)
    agreement = student_log_probs.argmax(-1).unflatten(1, (num_tasks, -1)).flip(0) == winners
    return dict(
        target_entropy=_entropy(teacher_probs).mean(),
        mean_target_entropy=_entropy(by_task.mean((0, 2))).mean(),
        max_entropy=teacher_probs.new_full((), math.log(num_prototypes)),
        distinct_targets=used.mean(),
        agreement=agreement.float().mean(),
    )


@torch.no_grad()
def batch_assignment_diagnostics(assignment: Tensor, own_columns: Tensor, anchors: Tensor) -> dict[str, Tensor]:
    """Sharpness of an assignment of samples to the samples of a batch, and the similarity of these.

    Args:
        assignment: Rows sum to 1, (n, N).
        own_columns: The anchor that is the sample itself, (n,).
        anchors: Unit rows, (N, D).

    Returns:
        ``assignment_entropy``, the mean entropy of a row divided by its maximum, ln N; ``assignment_self``, the mean
        weight that a sample gives to itself; ``encoding_cosine``, the mean cosine between different anchors.
        A uniform assignment, with entropy 1, is not a collapse by itself.
    """
    return dict(
        assignment_entropy=_entropy(assignment).mean() / math.log(max(2, assignment.shape[1])),
        assignment_self=assignment.gather(1, own_columns[:, None]).mean(),
        encoding_cosine=key_diagnostics(anchors)['key_cosine'],
    )


@torch.no_grad()
def class_diagnostics(assignment: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Fraction of an assignment of samples to each other, (n, n), within the classes, (n,), and its value by chance.

    Only the samples of this process count: a collective would deadlock where only some batches have labels.
    """
    same = (labels[:, None] == labels).to(assignment.dtype)
    fraction = (assignment * same).sum(1) / assignment.sum(1)
    return dict(assignment_same_class=fraction.mean(), same_class_chance=same.mean())


@torch.no_grad()
def retrieval_diagnostics(embeddings: Tensor, keys: Tensor, own_columns: Tensor) -> dict[str, Tensor]:
    """How often the embedding of an image is nearest to the key of its other view.

    Args:
        embeddings: Unit rows of one view, (n, d).
        keys: Unit rows of another view, (N, d).
        own_columns: The key of the same image, (n,).

    Returns:
        ``cross_view_top1``, a fraction, and ``cross_view_chance`` = 1 / N.
    """
    found = (embeddings @ keys.T).argmax(1) == own_columns
    return dict(cross_view_top1=found.float().mean(), cross_view_chance=keys.new_full((), 1 / len(keys)))


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)
