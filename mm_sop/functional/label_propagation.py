"""Propagation of labels from frame to frame by the similarity of local features."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


@torch.no_grad()
def propagate_labels(
    target: Tensor,
    context: Tensor,
    labels: Tensor,
    num_neighbors: int = 5,
    radius: int | None = 12,
    temperature: float = 0.1,
) -> Tensor:
    """Label the positions of a frame from those of earlier frames (Jabri et al., Space-Time Correspondence; DINO).

    Every position takes the mean label of its most similar positions in all context frames, weighted by
    ``exp(cosine / temperature)``. Positions tied with the last of them count too, which
    :func:`~mm_sop.functional.neighbors.nearest_neighbors` would not allow.

    Args:
        target: Local features of the frame, (D, h, w), of any length.
        context: Local features of T earlier frames, (T, D, h, w).
        labels: Their labels, one channel for each object and the background, (T, C, h, w).
        num_neighbors: Number of positions that vote.
        radius: Largest displacement in rows and columns; None for any.

    Returns:
        Labels of the frame, (C, h, w). They sum to one over the channels if those of the context do.

    Raises:
        ValueError: If shapes or ranges do not fit.
    """
    _check_frames(target, context, labels, num_neighbors, temperature)
    height, width = target.shape[1:]
    radius = max(height, width) if radius is None else radius
    target, context = normalize(target.float(), dim=0), normalize(context.float(), dim=1)
    columns = torch.arange(width, device=target.device)
    too_far = (columns[:, None] - columns).abs() > radius
    rows = []
    # Row by row, because the similarities of all pairs of positions would not fit into memory.
    for row in range(height):
        window = slice(max(row - radius, 0), row + radius + 1)
        # x column of the target; t frame, y row and z column of the context; d channel
        cosines = torch.einsum('dx,tdyz->xtyz', target[:, row], context[:, :, window])
        cosines = cosines.masked_fill(too_far[:, None, None], -torch.inf).flatten(1)
        least = cosines.topk(min(num_neighbors, cosines.shape[1]), dim=1).values[:, -1:]
        weights = (cosines / temperature).masked_fill(cosines < least, -torch.inf).softmax(dim=1)
        rows.append(weights @ labels[:, :, window].transpose(0, 1).flatten(1).T.float())
    return torch.stack(rows).permute(2, 0, 1)


def _check_frames(target: Tensor, context: Tensor, labels: Tensor, num_neighbors: int, temperature: float) -> None:
    fits = target.ndim == 3 and context.ndim == labels.ndim == 4
    fits = fits and context.shape[1:] == target.shape and len(context) == len(labels) > 0
    if not fits or labels.shape[2:] != target.shape[1:]:
        raise ValueError(
            'expected features (D, h, w) and (T, D, h, w) with labels (T, C, h, w), got '
            f'{tuple(target.shape)}, {tuple(context.shape)} and {tuple(labels.shape)}'
        )
    if num_neighbors < 1 or temperature <= 0:
        raise ValueError(
            f'num_neighbors must be at least 1 and temperature positive, got {num_neighbors} and {temperature}'
        )
