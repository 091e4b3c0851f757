"""The two objectives of SOP."""

import torch
from torch import Tensor


def sop_cls_loss(student_log_probs: Tensor, teacher_probs: Tensor) -> Tensor:
    """Cross-entropy of every student view against the teacher's other global views, averaged.

    ``L = -1 / (2 V - 2) sum_{i != j} mean_b sum_m q^(j)_m log p^(i)_m`` for teacher views j = 1, 2 and student views
    i = 1..V (SOP, section 3; pairs as in the released implementation). All pairs are computed at once: the
    product of the summed targets and the summed log-probabilities, minus the pairs i = j.

    Args:
        student_log_probs: Global views first, (V, B, M), V >= 2.
        teacher_probs: Targets from the two global views, (2, B, M). No gradient flows into them.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> student_log_probs = torch.full((4, 1, 10), 0.1).log()  # 2 global views and 2 crops, 1 image, 10 prototypes
        >>> sop_cls_loss(student_log_probs, torch.eye(10)[:2, None])
        tensor(2.3026)
    """
    if len(teacher_probs) != 2 or len(student_log_probs) < 2:
        raise ValueError(
            'expected at least 2 student views and exactly 2 teacher views, got '
            f'{len(student_log_probs)} and {len(teacher_probs)}'
        )
    if student_log_probs.shape[1:] != teacher_probs.shape[1:]:
        raise ValueError(
            f'student views {tuple(student_log_probs.shape)} and teacher views {tuple(teacher_probs.shape)} differ '
            'in batch or prototypes'
        )
    # Sums over a batch leave the range of half precision.
    dtype = torch.promote_types(student_log_probs.dtype, torch.float32)
    student_log_probs, teacher_probs = student_log_probs.to(dtype), teacher_probs.detach().to(dtype)
    num_pairs = 2 * len(student_log_probs) - 2
    all_pairs = (teacher_probs.sum(0) * student_log_probs.sum(0)).sum()
    same_view = (teacher_probs * student_log_probs[:2]).sum()
    return (same_view - all_pairs) / (num_pairs * student_log_probs.shape[1])


def sop_mim_loss(student_log_probs: Tensor, teacher_probs: Tensor, token_weights: Tensor) -> Tensor:
    """Weighted cross-entropy of masked student tokens against the teacher's tokens at the same positions.

    Args:
        student_log_probs: Masked tokens only, (m, M).
        teacher_probs: Targets of the same tokens from the unmasked view, (m, M). No gradient flows into them.
        token_weights: (m,); ``1 / (2 B max(1, masked tokens of the image))`` gives the mean over the images of both
            global views of SOP-MIM, in which an image without a mask counts as zero (SOP, section 3).

    Returns:
        Scalar; zero, with zero gradients, when no token is masked.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> student_log_probs = torch.full((3, 10), 0.1).log()  # 3 masked tokens, 10 prototypes
        >>> sop_mim_loss(student_log_probs, torch.eye(10)[:3], torch.full((3,), 1 / 3))
        tensor(2.3026)
    """
    if student_log_probs.shape != teacher_probs.shape or token_weights.shape != student_log_probs.shape[:1]:
        raise ValueError(
            f'expected (m, M), (m, M) and (m,), got {tuple(student_log_probs.shape)}, '
            f'{tuple(teacher_probs.shape)} and {tuple(token_weights.shape)}'
        )
    dtype = torch.promote_types(student_log_probs.dtype, torch.float32)
    cross_entropy = -(teacher_probs.detach().to(dtype) * student_log_probs.to(dtype)).sum(-1)
    return (token_weights * cross_entropy).sum()
