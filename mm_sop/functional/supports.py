"""Anchors and their support embeddings from a memory bank."""

import torch
from torch import Tensor

from mm_sop.functional.precision import at_least_fp32

# Largest block of the anchor-by-bank similarity matrix that is held at once, in elements: 32 MiB in fp32, near the size
# of caches, and 256 MiB on accelerators, for few launches.
_BLOCK_ON_CPU, _BLOCK = 2**23, 2**26
# Columns with one maximum in the first level of the search for the largest elements.
_CHUNK = 16


def sample_anchors(
    num_rows: int,
    num_anchors: int,
    num_tasks: int = 1,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the anchor rows of every task uniformly without replacement, independently for each task.

    The positions of the largest ``num_anchors`` of ``num_rows`` uniform random numbers are a sample without replacement
    in random order, so no permutation on the host and no synchronization is needed (SOP, section 3).

    Returns:
        Row indices of M anchors for each of T tasks, (T, M), int64.

    Raises:
        ValueError: There are no anchors, or more than rows.
    """
    if not 0 < num_anchors <= num_rows:
        raise ValueError(f'num_anchors must be between 1 and the {num_rows} rows of the bank, got {num_anchors}')
    draws = torch.rand(num_tasks, num_rows, generator=generator, device=device)
    return draws.topk(num_anchors, dim=1).indices


def sample_weighted(weights: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw columns of each row without replacement, with positive weights: (T, n) -> (T, count), int64.

    Draws the same as :func:`torch.multinomial`, which on CUDA makes the host wait to check the weights.
    """
    return (weights / torch.empty_like(weights).exponential_(1, generator=generator)).topk(count).indices


def select_supports(
    bank: Tensor, anchors: Tensor, num_supports: int, anchor_weight: float = 0.9, excluded: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the members of self-organizing prototypes: each anchor with its nearest rows of the bank.

    The vote of a support is its cosine to the anchor, clamped to [0, 1]; the anchor votes with ``anchor_weight`` (SOP,
    section 3; the value 0.9 and the exclusion of the task's anchors are those of the released implementation).

    This runs in every training step: unlike :func:`~mm_sop.functional.neighbors.nearest_neighbors` it relies on unit
    rows, does not order ties, excludes rows per task, and never synchronizes with the device.

    Args:
        bank: Unit rows, (N, d).
        anchors: Distinct row indices of every task, (T, M).
        num_supports: Number k of support embeddings of an anchor, besides itself.
        anchor_weight: Weight of the anchor in its own prototype, in [0, 1].
        excluded: Rows that cannot be supports of a task, (T, M'). Defaults to the task's anchors; pass all that were
            drawn if some were dropped before this call.

    Returns:
        Row indices and weights, both (T, M, k + 1): supports by descending cosine, then the anchor.

    Raises:
        ValueError: If a shape, a range or the size of the bank does not fit.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.6, 0.8]])
        >>> rows, weights = select_supports(bank, anchors=torch.tensor([[0, 1]]), num_supports=1)
        >>> rows
        tensor([[[2, 0],
                 [3, 1]]])
        >>> weights
        tensor([[[0.8000, 0.9000],
                 [0.8000, 0.9000]]])
    """
    excluded = anchors if excluded is None else excluded
    _check_selection(bank, anchors, num_supports, anchor_weight, excluded)
    anchor_rows = anchors.unsqueeze(-1)
    anchor_weights = torch.full_like(anchor_rows, anchor_weight, dtype=torch.promote_types(bank.dtype, torch.float32))
    if num_supports == 0:
        return anchor_rows, anchor_weights
    with torch.no_grad():
        cosines, rows = _nearest_rows(bank, anchors, num_supports, excluded)
    return torch.cat([rows, anchor_rows], dim=-1), torch.cat([cosines.clamp(0, 1), anchor_weights], dim=-1)


def _nearest_rows(bank: Tensor, anchors: Tensor, num_supports: int, excluded: Tensor) -> tuple[Tensor, Tensor]:
    bank = at_least_fp32(bank)
    elements = _BLOCK_ON_CPU if bank.device.type == 'cpu' else _BLOCK
    block = max(1, elements // (anchors.shape[0] * bank.shape[0]))
    # t task, m anchor, n row of the bank: one product for the anchors of all tasks, excluded columns masked.
    columns = excluded.unsqueeze(1)
    found = []
    with torch.autocast(bank.device.type, enabled=False):
        # Blocks share their memory: fresh pages cost a CPU a quarter of the product's time.
        buffer = bank.new_empty(anchors[:, :block].numel(), len(bank))
        for rows in anchors.split(block, dim=1):
            similarity = torch.mm(bank[rows.flatten()], bank.T, out=buffer[: rows.numel()]).view(*rows.shape, -1)
            similarity.scatter_(2, columns.expand(-1, rows.shape[1], -1), -torch.inf)
            found.append(_largest(similarity, num_supports))
    values, indices = zip(*found, strict=True)
    return torch.cat(values, dim=1), torch.cat(indices, dim=1)


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Same as ``values.topk(count)``, ties aside: the ``count`` chunks with the largest maxima hold all of it."""
    width = values.shape[-1]
    num_chunks = width // _CHUNK
    if num_chunks < 4 * count:
        return values.topk(count, dim=-1)
    # Chunk j has the columns j, j + num_chunks, ...; columns after the last whole chunk are all candidates.
    whole = _CHUNK * num_chunks
    maxima = values[..., :whole].unflatten(-1, (_CHUNK, num_chunks)).amax(-2)
    chunks = maxima.topk(count, dim=-1, sorted=False).indices.unsqueeze(-1)  # (..., count, 1)
    candidates = (chunks + torch.arange(0, whole, num_chunks, device=values.device)).flatten(-2)
    rest = torch.arange(whole, width, device=values.device).expand(*values.shape[:-1], -1)
    candidates = torch.cat([candidates, rest], dim=-1)
    best = values.gather(-1, candidates).topk(count, dim=-1)
    return best.values, candidates.gather(-1, best.indices)


def _check_selection(bank: Tensor, anchors: Tensor, num_supports: int, anchor_weight: float, excluded: Tensor) -> None:
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
