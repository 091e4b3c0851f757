"""Anchors and their support embeddings out of a memory bank."""

import torch
from torch import Tensor

# Largest block of the anchor-by-bank similarity matrix that is held at once, in elements (256 MiB in fp32).
_SIMILARITY_BLOCK = 2**26


def sample_anchors(
    num_rows: int,
    num_anchors: int,
    num_tasks: int = 1,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the anchor rows of every task: uniform, without replacement, tasks independent of each other.

    The largest ``num_anchors`` of ``num_rows`` uniform random numbers are a sample without replacement in random
    order, so the draw needs neither a permutation on the host nor a synchronisation (SOP, section 3).

    Args:
        num_rows: Rows N of the bank.
        num_anchors: Anchors M of a task, at most N.
        num_tasks: Number T of independent tasks.
        generator: Source of the random numbers; it must live on ``device``.
        device: Device of the result.

    Returns:
        Row indices, (T, M), int64.
    """
    if not 0 < num_anchors <= num_rows:
        raise ValueError(f'num_anchors must be between 1 and the {num_rows} rows of the bank, got {num_anchors}')
    draws = torch.rand(num_tasks, num_rows, generator=generator, device=device)
    return draws.topk(num_anchors, dim=1).indices


def select_supports(
    bank: Tensor,
    anchors: Tensor,
    num_supports: int,
    anchor_weight: float = 0.9,
    excluded: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the members of self-organizing prototypes: each anchor with its nearest rows of the bank.

    One matrix product serves the anchors of all tasks; the columns a task may not use are masked instead of gathered
    away. The vote of a support is its cosine to the anchor, clamped to [0, 1]; the anchor votes with
    ``anchor_weight`` (SOP, section 3; the value 0.9 and the exclusion of the task's anchors are those of the released
    implementation).

    Args:
        bank: Unit rows, (N, d).
        anchors: Distinct row indices of every task, (T, M).
        num_supports: Support embeddings k of an anchor besides itself.
        anchor_weight: Weight of the anchor in its own prototype, in [0, 1].
        excluded: Rows that cannot be supports of a task, (T, M'). Defaults to the task's anchors; give the anchors
            that were drawn when some of them were dropped before this call.

    Returns:
        Row indices and weights, both (T, M, k + 1): supports by falling cosine, then the anchor.

    Raises:
        ValueError: If a shape, a range or the size of the bank does not fit.
    """
    excluded = anchors if excluded is None else excluded
    _check_selection(bank, anchors, num_supports, anchor_weight, excluded)
    own = anchors.unsqueeze(-1)
    own_weight = torch.full_like(own, anchor_weight, dtype=torch.promote_types(bank.dtype, torch.float32))
    if num_supports == 0:
        return own, own_weight
    with torch.no_grad():
        cosines, rows = _nearest_rows(bank, anchors, num_supports, excluded)
    return torch.cat([rows, own], dim=-1), torch.cat([cosines.clamp(0, 1), own_weight], dim=-1)


def _nearest_rows(bank: Tensor, anchors: Tensor, num_supports: int, excluded: Tensor) -> tuple[Tensor, Tensor]:
    bank = bank.to(torch.promote_types(bank.dtype, torch.float32))
    block = max(1, _SIMILARITY_BLOCK // (anchors.shape[0] * bank.shape[0]))
    columns = excluded.unsqueeze(1)
    parts = []
    with torch.autocast(bank.device.type, enabled=False):
        for rows in anchors.split(block, dim=1):
            similarity = torch.matmul(bank[rows.flatten()], bank.T).view(*rows.shape, -1)
            similarity.scatter_(2, columns.expand(-1, rows.shape[1], -1), -torch.inf)
            parts.append(similarity.topk(num_supports, dim=-1))
    values, indices = zip(*parts, strict=True)
    return torch.cat(values, dim=1), torch.cat(indices, dim=1)


def _check_selection(bank: Tensor, anchors: Tensor, num_supports: int, anchor_weight: float, excluded: Tensor):
    if bank.ndim != 2 or anchors.ndim != 2 or excluded.ndim != 2:
        raise ValueError(
            "expected bank (N, d), anchors (T, M) and excluded (T, M'), got "
            f'{tuple(bank.shape)}, {tuple(anchors.shape)} and {tuple(excluded.shape)}'
        )
    if excluded.shape[0] != anchors.shape[0]:
        raise ValueError(f'excluded has {excluded.shape[0]} tasks, anchors have {anchors.shape[0]}')
    if not 0 <= anchor_weight <= 1:
        raise ValueError(f'anchor_weight must be in [0, 1], got {anchor_weight}')
    if num_supports < 0:
        raise ValueError(f'num_supports must not be negative, got {num_supports}')
    if num_supports + excluded.shape[1] > bank.shape[0]:
        raise ValueError(
            f'{excluded.shape[1]} anchors and {num_supports} supports do not fit into a bank of {bank.shape[0]} '
            'rows: enlarge the bank, or lower the number of anchors or supports'
        )
