"""Kozachenko-Leonenko regularizer."""

import torch
from torch import Tensor


def koleo_loss(embeddings: Tensor, candidates: Tensor | None = None, offset: int = 0, eps: float = 1e-8) -> Tensor:
    """Negative mean logarithm of the distance of every embedding to its nearest neighbor.

    From "Spreading vectors for similarity search" (Sablayrolles et al., 2019, equation 4), as used by DINOv2 and
    MaSSL.

    Args:
        embeddings: Unit rows, (B, d).
        candidates: Rows among which neighbors are searched, (B', d), for instance gathered from several processes.
            Defaults to ``embeddings``.
        offset: Row of ``candidates`` at which ``embeddings`` begin; a row is not its own neighbor.
        eps: Added to the distance before the logarithm.

    Raises:
        ValueError: If there are fewer than 2 candidates.

    Example:
        >>> koleo_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # -log of the distance sqrt(2)
        tensor(-0.3466)
    """
    candidates = embeddings if candidates is None else candidates
    if len(candidates) < 2:
        raise ValueError('the nearest neighbor of an embedding needs at least 2 embeddings')
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    embeddings, candidates = embeddings.to(dtype), candidates.to(dtype)
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        similarity = embeddings @ candidates.T
        similarity.diagonal(offset).fill_(-torch.inf)
        nearest = similarity.argmax(dim=1)
    distance = torch.nn.functional.pairwise_distance(embeddings, candidates[nearest], eps=eps)
    return -(distance + eps).log().mean()
