"""Objective of DINO: learned prototypes and centered, sharpened targets."""

from torch import Tensor

from mm_sop.functional.precision import at_least_fp32


def dino_targets(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Centered and sharpened distributions of the teacher, ``softmax((t - c) / T)`` (DINO, section 3.1).

    Scores t of K prototypes, (..., K), and their running mean c, (K,), give probabilities, (..., K), at least in fp32
    and without gradient. A small temperature T gives sharp targets.
    """
    return ((at_least_fp32(logits.detach()) - center) / temperature).softmax(-1)


def dino_loss(student_logits: Tensor, teacher_probs: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy ``-mean_b sum_k q_k log softmax(s / T)_k`` of the student against the teacher.

    Either side may have n cells per image; the loss is the mean over images and cells. Targets sum to one, so it equals
    ``mean_i logsumexp(s_i / T) - <q, mean_i s_i / T>``, and the distributions of target cells can be averaged first: no
    intermediate result is larger than the scores.

    Args:
        student_logits: Scores of K prototypes, (B, K) or (B, n, K).
        teacher_probs: Targets, (B, K), or (B, n, K) where the student has no cells. No gradient flows into them.
        temperature: T of the student.

    Raises:
        ValueError: If the shapes do not fit.
    """
    shapes = student_logits.shape, teacher_probs.shape
    if shapes[0][0] != shapes[1][0] or shapes[0][-1] != shapes[1][-1] or student_logits.ndim + teacher_probs.ndim > 5:
        raise ValueError(
            'expected student (B, K) or (B, n, K) and teacher (B, K) or (B, n, K), at most one of them with cells, got '
            f'{tuple(shapes[0])} and {tuple(shapes[1])}'
        )
    scores = at_least_fp32(student_logits) / temperature
    log_partition = scores.logsumexp(-1)
    expected = (_mean_over_cells(scores) * _mean_over_cells(teacher_probs.detach())).sum(-1)
    return log_partition.mean() - expected.mean()


def update_center(center: Tensor, batch_mean: Tensor, momentum: float = 0.9) -> Tensor:
    """Running mean of the teacher's scores, ``m c + (1 - m) mean``, (K,), over global batches (DINO, equation 4)."""
    return center * momentum + batch_mean * (1 - momentum)


def _mean_over_cells(values: Tensor) -> Tensor:
    return values.mean(1) if values.ndim == 3 else values
