"""Pairs of different images with similar content (SePP)."""

from collections.abc import Callable

import torch
from torch import Tensor

from mm_sop.functional.neighbors import BandNeighbors, largest_of_groups, search_in_band


@torch.no_grad()
def mine_semantic_pairs(
    features: Tensor,
    lower: float,
    upper: float,
    max_per_anchor: int | None = 1,
    max_partner_uses: int | None = 5,
    block_size: int = 2048,
    mutual: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the semantic positive pairs {i, j}, i < j, with ``lower <= cosine <= upper``.

    Every image is an anchor and chooses the ``max_per_anchor`` most similar images of the band. Of the anchors that
    chose the same partner, the ``max_partner_uses`` most similar keep it. Two images that chose each other give one
    pair. Ties are broken by the smaller index. Without ties, a permutation of the features permutes the indices and
    changes nothing else.

    The search is exact, see :func:`~mm_sop.functional.neighbors.search_in_band`. Beside the features, it needs memory
    for a few blocks of ``block_size`` x ``block_size`` similarities and ``max_per_anchor`` entries per image.

    Args:
        features: Features, (K, D), of any length. Rows of zeros are left out.
        lower: Lower bound of the cosine.
        upper: Upper bound; it rejects duplicates.
        max_per_anchor: Partners that an image may choose; None for all in the band, as far as memory allows.
        max_partner_uses: How often an image may be chosen; None for any number.
        block_size: Rows and columns that are compared at once.
        mutual: Keep only pairs whose images chose each other.
        progress: Called with the numbers of finished and of all row blocks.

    Returns:
        Pairs, int64, (M, 2), sorted, and their cosines, fp32, (M,).

    Raises:
        ValueError: If an argument is out of range, a feature is not finite, or ``max_per_anchor=None`` finds more than
            67 million pairs.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.3], [1.0, 0.0]])
        >>> pairs, cosines = mine_semantic_pairs(features, lower=0.9, upper=0.99)
        >>> pairs  # images 0 and 3 are duplicates
        tensor([[0, 2],
                [2, 3]])
    """
    neighbors = search_in_band(features, lower, upper, max_per_anchor, block_size, progress)
    return select_pairs(neighbors, lower, max_partner_uses, mutual)


def select_pairs(
    neighbors: BandNeighbors, lower: float, max_partner_uses: int | None = 5, mutual: bool = False
) -> tuple[Tensor, Tensor]:
    """Turn the choices of all anchors into pairs; arguments and result as of :func:`mine_semantic_pairs`.

    The neighbors must have been searched with a ``lower`` that is not above this one.
    """
    if max_partner_uses is not None and max_partner_uses < 1:
        raise ValueError(f'max_partner_uses must be at least 1, or None for any number, got {max_partner_uses}')
    count = len(neighbors.nearest)
    # Cosines are fp32 numbers; so is the bound that they are compared with.
    chosen = neighbors.cosines >= torch.tensor(lower, dtype=torch.float32)
    (anchors, partners), cosines = neighbors.pairs[chosen].unbind(1), neighbors.cosines[chosen]
    if mutual:
        kept = torch.isin(anchors * count + partners, partners * count + anchors)
        anchors, partners, cosines = anchors[kept], partners[kept], cosines[kept]
    if max_partner_uses is not None:
        # The most similar anchors keep the partner.
        kept = largest_of_groups(partners, anchors, cosines, max_partner_uses)
        anchors, partners, cosines = anchors[kept], partners[kept], cosines[kept]
    # A pair is one number, so that it can be sorted; both of its directions have the same cosine.
    codes, order = (torch.minimum(anchors, partners) * count + torch.maximum(anchors, partners)).sort()
    first = torch.ones_like(codes, dtype=torch.bool)
    first[1:] = codes[1:] != codes[:-1]
    codes = codes[first]
    return torch.stack([codes // max(count, 1), codes % max(count, 1)], dim=1), cosines[order[first]]


def suggest_lower_bound(random_cosines: Tensor, mined_cosines: Tensor, num_images: int, budget: float = 0.5) -> float:
    """Choose the lower bound without labels.

    It is the larger of the 99.99th percentile of random pairs and the value that leaves at most ``budget`` pairs for
    each image.

    Args:
        random_cosines: Cosines of random pairs, (n,).
        mined_cosines: Cosines of the pairs mined without a lower bound, (M,).
        num_images: Number of images that were compared.
        budget: Pairs for each image.
    """
    chance = float(torch.quantile(random_cosines.double()[: 2**24], 0.9999))
    allowed = int(budget * num_images)
    if len(mined_cosines) <= allowed:
        return chance
    first_excess = mined_cosines.sort(descending=True).values[allowed]
    return max(chance, float(torch.nextafter(first_excess, first_excess.new_tensor(2.0))))


def known_positives(image_ids: Tensor, partner_ids: Tensor, other_ids: Tensor) -> Tensor:
    """Mask of false negatives, bool, (n, N): the image itself and its semantic pairs.

    Args:
        image_ids: Indices of the images, int64, (n,).
        partner_ids: Indices of the images paired with each of them, int64, (n, P), padded with -1.
        other_ids: Indices of the candidates for negatives, int64, (N,); -1 for unknown ones.
    """
    known = image_ids[:, None] == other_ids
    for column in partner_ids.unbind(1):
        known |= column[:, None] == other_ids
    return known & (other_ids >= 0)
