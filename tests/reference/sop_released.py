"""The training step of the released SOP code after the backbone, written out plainly.

Oracle of the tests and the "before" of ``tools/benchmarks/sop_step.py``. It keeps the release's arithmetic and its
data movement: column-wise banks cloned in every step, a host permutation per task, gathered candidates, their
concatenation with the anchors, a dense contribution matrix, heads on every token, and a double loop over the views.
Left out are its synchronizations with the host (printed values, the bank's pointer read from the device) and KoLeo,
whose weight is zero there. Everything runs in the dtype of the inputs, float64 included.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Task(NamedTuple):
    """Prototypes of one task: K of them with c members each."""

    members: Tensor  # (K c, d), prototype by prototype: supports by falling cosine, then the anchor
    contributions: Tensor  # Y, (K c, K)
    rows: Tensor  # rows of the bank, (K, c)
    weights: Tensor  # (K, c)


def build_task(columns, permutation, num_anchors, num_supports, anchor_weight=0.9, low_energy=False, kept=None):
    """Build one task from a bank of columns, (d, N).

    Args:
        permutation: Of the N columns; the first ``num_anchors`` are the anchors.
        low_energy: Keep half of the anchors, drawn as the release does, or those at the positions ``kept``.
    """
    anchors = columns[:, permutation[:num_anchors]]
    candidates = columns[:, permutation[num_anchors:]]
    scores, supports = (anchors.T @ candidates).topk(num_supports, dim=1)
    own = torch.arange(num_anchors, device=columns.device).unsqueeze(1) + candidates.shape[1]
    members = torch.cat([supports, own], dim=1)
    weights = torch.cat([scores, torch.full_like(own, anchor_weight, dtype=scores.dtype)], dim=1)
    if low_energy and num_supports > 0:
        kept = draw_low_energy(scores, candidates.shape[1]) if kept is None else kept
        members, weights = members[kept], weights[kept]
    pool = torch.cat([candidates, anchors], dim=1)
    rows = torch.cat([permutation[num_anchors:], permutation[:num_anchors]])[members]
    return Task(pool[:, members.flatten()].T, contribution_matrix(weights), rows, weights)


def draw_low_energy(scores, num_candidates):
    """Half of the anchors by the released criterion, which uses the mean instead of the intended std."""
    mean = scores.mean(dim=1)
    energy = (1 + 1 / (4 * num_candidates)) * mean / (mean.abs() + 1e-8)
    return torch.multinomial(1 / energy, len(scores) // 2)


def contribution_matrix(weights):
    """Dense Y, (K c, K): a member votes with its weight for its own prototype and shares the rest among the others."""
    num_prototypes, size = weights.shape
    own = torch.eye(num_prototypes, device=weights.device, dtype=torch.bool).repeat_interleave(size, dim=0)
    weight = weights.reshape(-1, 1)
    contributions = torch.where(own, weight, (1 - weight) / (num_prototypes - 1))
    return contributions / contributions.sum(dim=1, keepdim=True)


def probabilities(embeddings, task, temperature):
    """``P = softmax(u D^T / tau) Y``, (..., d) -> (..., K)."""
    return (embeddings @ task.members.T / temperature).softmax(dim=-1) @ task.contributions


def cls_loss(student, teacher):
    """Mean cross-entropy over the pairs of student view i and teacher view j, i != j; views are (B, K)."""
    terms = []
    for j, target in enumerate(teacher):
        for i, prediction in enumerate(student):
            if i != j:
                terms.append(torch.log(prediction ** (-target)).sum(dim=-1).mean())
    return sum(terms) / len(terms)


def patch_loss(student, teacher, masks):
    """Cross-entropy at masked patches: mean over the patches of an image, images and views.

    Args:
        student: Of all tokens of both views, view-major, (2 B, L, K).
        teacher: Likewise.
        masks: (2 B, L), true at masked patches.
    """
    cross_entropy = torch.log(student ** (-teacher)).sum(dim=-1)
    views = []
    for values, mask in zip(cross_entropy.chunk(2), masks.chunk(2), strict=True):
        views.append(((values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean())
    return sum(views) / 2


class ReleasedBank(nn.Module):
    """First-in-first-out memory, (d, N), with the tasks of the release drawn from it."""

    def __init__(
        self, num_rows, width, num_anchors, num_supports, num_tasks, anchor_weight=0.9, low_energy=False, dtype=None
    ):
        super().__init__()
        self.register_buffer('columns', F.normalize(torch.randn(num_rows, width, dtype=dtype)).T.contiguous())
        self.pointer = 0
        self.num_tasks = num_tasks
        self.build_task = partial(
            build_task,
            num_anchors=num_anchors,
            num_supports=num_supports,
            anchor_weight=anchor_weight,
            low_energy=low_energy,
        )

    def draw(self, permutations=None, kept=None):
        """Tasks of this step, from explicit ``permutations`` (T, N) and ``kept`` (T, K) where given."""
        columns = self.columns.clone()
        tasks = []
        for t in range(self.num_tasks):
            permutation = torch.randperm(columns.shape[1]) if permutations is None else permutations[t]
            kept_anchors = None if kept is None else kept[t]
            tasks.append(self.build_task(columns, permutation.to(columns.device), kept=kept_anchors))
        return tasks

    def enqueue(self, keys):
        assert self.columns.shape[1] % len(keys) == 0, 'the batch must divide the bank'
        self.columns[:, self.pointer : self.pointer + len(keys)] = keys.T
        self.pointer = (self.pointer + len(keys)) % self.columns.shape[1]


class ReleasedHead(nn.Sequential):
    """Three linear layers on every token and L2 normalization; returns the [CLS] and the patch embeddings."""

    def __init__(self, in_channels=384, hidden_channels=2048, out_channels=256):
        super().__init__(
            nn.Linear(in_channels, hidden_channels),
            nn.GELU(),
            nn.Linear(hidden_channels, hidden_channels),
            nn.GELU(),
            nn.Linear(hidden_channels, out_channels),
        )

    def forward(self, tokens):
        embeddings = F.normalize(super().forward(tokens), dim=-1, eps=1e-6)
        return embeddings[:, 0], embeddings[:, 1:]


class ReleasedStep(nn.Module):
    """From the backbones' tokens to the two losses, with the write of both banks."""

    def __init__(
        self, student_head, teacher_head, cls_bank, patch_bank, student_temperature=0.1, teacher_temperature=0.04
    ):
        super().__init__()
        self.student_head, self.teacher_head = student_head, teacher_head
        self.cls_bank, self.patch_bank = cls_bank, patch_bank
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature

    def embed(self, student_tokens, local_tokens, teacher_tokens):
        """Student [CLS] of all views (V B, d), student patches, teacher [CLS] and patches of the global views."""
        with torch.no_grad():
            teacher_cls, teacher_patches = self.teacher_head(teacher_tokens)
        student_cls, student_patches = self.student_head(student_tokens)
        if local_tokens is not None:
            student_cls = torch.cat([student_cls, self.student_head(local_tokens)[0]])
        return student_cls, student_patches, teacher_cls, teacher_patches

    def cls_part(self, student, teacher, tasks=None):
        batch = len(teacher) // 2
        tasks = self.cls_bank.draw() if tasks is None else tasks
        losses = []
        for task in tasks:
            student_probs, teacher_probs = self._probabilities(student, teacher, task)
            losses.append(cls_loss(student_probs.split(batch), teacher_probs.split(batch)))
        return sum(losses) / len(losses)

    def patch_part(self, student, teacher, masks, tasks=None):
        tasks = self.patch_bank.draw() if tasks is None else tasks
        losses = [patch_loss(*self._probabilities(student, teacher, task), masks) for task in tasks]
        return sum(losses) / len(losses)

    def _probabilities(self, student, teacher, task):
        with torch.no_grad():
            teacher_probs = probabilities(teacher, task, self.teacher_temperature)
        return probabilities(student, task, self.student_temperature), teacher_probs

    def enqueue_patches(self, patches):
        """Store one random token of every image of the second view, (2 B, L, d)."""
        chosen = torch.randint(patches.shape[1], (len(patches),), device=patches.device)
        keys = patches[torch.arange(len(patches), device=patches.device), chosen]
        self.patch_bank.enqueue(keys[len(keys) // 2 :])

    def forward(self, student_tokens, local_tokens, teacher_tokens, masks):
        """Losses of one step.

        Args:
            student_tokens: Both masked global views, view-major, [CLS] first, (2 B, 1 + L, D).
            local_tokens: Local views, (V_l B, 1 + L_l, D), or None.
            teacher_tokens: Both unmasked global views, (2 B, 1 + L, D).
            masks: (2 B, L).
        """
        student_cls, student_patches, teacher_cls, teacher_patches = self.embed(
            student_tokens, local_tokens, teacher_tokens
        )
        loss_cls = self.cls_part(student_cls, teacher_cls)
        self.cls_bank.enqueue(teacher_cls[len(teacher_cls) // 2 :])
        loss_mim = self.patch_part(student_patches, teacher_patches, masks)
        self.enqueue_patches(teacher_patches)
        return loss_cls, loss_mim
