"""Pairs of different images with similar content, found by a blocked and exact search (SePP)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDOFF = 2.0**-24
# Numbers that one temporary array of exact cosines holds: few enough for a processor's cache.
_EXACT_BLOCK = 2**16
# Share of a block beyond which preselected pairs are sifted by a product in fp64.
_MANY = 1 / 16
_ROWS_AT_ONCE = 256
_MAX_HITS = 2**26


@dataclass
class BandNeighbors:
    """For every image its most similar other images inside a band of cosines.

    Attributes:
        cosines: Falling in every row, fp32, (K, m); ``-inf`` where there are fewer than m.
        rows: Their indices, int64, (K, m); -1 where there are fewer.
        nearest: Cosine of the most similar other image, in the band or not, (K,); for histograms, as it has the
            rounding of a matrix product.
        nearest_rows: Index of that image where it is above the band, else -1, (K,).
    """

    cosines: Tensor
    rows: Tensor
    nearest: Tensor
    nearest_rows: Tensor


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

    Every image is an anchor and chooses the ``max_per_anchor`` most similar images of the band. Of those who chose the
    same partner, the ``max_partner_uses`` most similar keep it. A pair whose two images chose each other is listed
    once. Of equal cosines the smaller index comes first. Without such ties, a permutation of the features permutes the
    indices and nothing else.

    Matrix products in fp32 only preselect, with a bound on their rounding; the cosines that decide are computed pair
    by pair in fp64 and rounded to fp32. The result therefore depends neither on ``block_size`` nor on the number of
    threads. Beside the features, memory is needed for one block of ``block_size`` x ``block_size``
    similarities and ``max_per_anchor`` entries per image.

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
    """
    if max_per_anchor is None:
        anchors, partners, cosines = _all_in_band(features, lower, upper, block_size, progress)
        return _select(anchors, partners, cosines, len(features), max_partner_uses, mutual)
    neighbors = search_in_band(features, lower, upper, max_per_anchor, block_size, progress)
    return select_pairs(neighbors, lower, max_partner_uses, mutual)


@torch.no_grad()
def search_in_band(
    features: Tensor,
    lower: float,
    upper: float,
    num_neighbors: int = 1,
    block_size: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> BandNeighbors:
    """Find for every image the most similar others inside a band; see :func:`mine_semantic_pairs`.

    The result for a higher ``lower`` is the same with the entries below it removed.

    Args:
        features: Features, (K, D), of any length.
        lower: Lower bound of the cosine.
        upper: Upper bound.
        num_neighbors: Number m of neighbours to keep.
        block_size: Rows and columns that are compared at once.
        progress: Called with the numbers of finished and of all row blocks.

    Returns:
        The neighbours.
    """
    search = _Search(features, lower, upper, num_neighbors)
    for first, second, similarity in search.blocks(block_size, progress):
        search.update(first, second, similarity)
        if first is not second:
            search.update(second, first, similarity.T)
    return search.result()


def select_pairs(
    neighbors: BandNeighbors, lower: float, max_partner_uses: int | None = 5, mutual: bool = False
) -> tuple[Tensor, Tensor]:
    """Turn the choices of all anchors into pairs; see :func:`mine_semantic_pairs`.

    Args:
        neighbors: From :func:`search_in_band` with a ``lower`` that is not above this one.
        lower: Lower bound of the cosine.
        max_partner_uses: How often an image may be chosen; None for any number.
        mutual: Keep only pairs whose images chose each other.

    Returns:
        Pairs, int64, (M, 2), sorted, and their cosines, fp32, (M,).
    """
    anchors, places = (neighbors.cosines >= _float32(lower)).nonzero(as_tuple=True)
    partners, cosines = neighbors.rows[anchors, places], neighbors.cosines[anchors, places]
    return _select(anchors, partners, cosines, len(neighbors.rows), max_partner_uses, mutual)


def pair_cosines(features: Tensor, pairs: Tensor) -> Tensor:
    """Cosines of single pairs, computed in fp64 one by one and rounded to fp32.

    Args:
        features: Features, (K, D), of any length; a row of zeros has cosine 0 to all.
        pairs: Indices, int64, (n, 2).

    Returns:
        Cosines, fp32, (n,).
    """
    norms = _row_norms(features)
    return _exact_cosines(features, norms, pairs[:, 0], pairs[:, 1])


def suggest_lower_bound(random_cosines: Tensor, mined_cosines: Tensor, num_images: int, budget: float = 0.5) -> float:
    """Choose the lower bound without labels.

    It is the larger of the 99.99th percentile of random pairs and the value that leaves at most ``budget`` pairs for
    each image.

    Args:
        random_cosines: Cosines of random pairs, (n,).
        mined_cosines: Cosines of the pairs that mining without a lower bound gives, (M,).
        num_images: Number of images that were compared.
        budget: Pairs for each image.

    Returns:
        The bound.
    """
    chance = float(torch.quantile(random_cosines.double()[: 2**24], 0.9999))
    allowed = int(budget * num_images)
    if len(mined_cosines) <= allowed:
        return chance
    first_excess = mined_cosines.sort(descending=True).values[allowed]
    return max(chance, float(torch.nextafter(first_excess, first_excess.new_tensor(2.0))))


def known_positives(image_ids: Tensor, partner_ids: Tensor, other_ids: Tensor) -> Tensor:
    """Which images are no honest negatives of an image: itself, and those that it is paired with.

    Args:
        image_ids: Indices of the images, int64, (n,).
        partner_ids: Indices of the images that each of them is paired with, int64, (n, P), filled up with -1.
        other_ids: Indices of the candidates for negatives, int64, (N,); -1 for unknown ones.

    Returns:
        bool, (n, N).
    """
    known = image_ids[:, None] == other_ids
    for column in partner_ids.unbind(1):
        known |= column[:, None] == other_ids
    return known & (other_ids >= 0)


class _Search:
    """State of a search: the best candidates of every image so far."""

    def __init__(self, features: Tensor, lower: float, upper: float, num_neighbors: int = 1) -> None:
        if features.ndim != 2 or not features.shape[1]:
            raise ValueError(f'expected features (K, D), got {tuple(features.shape)}')
        if not -1 <= lower <= upper <= 1:
            raise ValueError(f'expected -1 <= lower <= upper <= 1, got lower={lower} and upper={upper}')
        if num_neighbors < 1:
            raise ValueError(f'max_per_anchor must be at least 1, or None for all, got {num_neighbors}')
        self.features = features
        self.norms = _row_norms(features)
        self.alive = self.norms.nonzero().squeeze(1)
        # Bound for a sum of D rounded products of rounded unit vectors, in any order.
        self.error = (features.shape[1] + 8) * _ROUNDOFF
        self.lower, self.upper = _float32(lower), _float32(upper)
        count, device = len(features), features.device
        self.cosines = torch.full((count, num_neighbors), -torch.inf, device=device)
        self.rows = torch.full((count, num_neighbors), -1, device=device)
        self.nearest = torch.full((count,), -torch.inf, device=device)
        self.nearest_rows = torch.full((count,), -1, device=device)

    def blocks(self, block_size: int, progress: Callable | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Indices of two blocks and their similarities, every unordered pair of blocks once.

        An image has similarity ``-inf`` to itself.
        """
        if block_size < 1:
            raise ValueError(f'block_size must be at least 1, got {block_size}')
        parts = self.alive.split(block_size) if len(self.alive) else ()
        for number, first in enumerate(parts):
            unit_rows = self._unit(first)
            for second in parts[number:]:
                if second is first:
                    similarity = _multiply(unit_rows, unit_rows).fill_diagonal_(-torch.inf)
                else:
                    similarity = _multiply(unit_rows, self._unit(second))
                yield first, second, similarity
            if progress is not None:
                progress(number + 1, len(parts))

    def update(self, anchors: Tensor, candidates: Tensor, similarity: Tensor) -> None:
        """Take up one block: ``similarity[a, b]`` is that of ``anchors[a]`` and ``candidates[b]``."""
        peaks = similarity.amax(1)
        self._note_nearest(anchors, candidates, similarity, peaks)
        worst = self.cosines[anchors, -1].clamp_min(self.lower)
        for active in (peaks >= worst - 2 * self.error).nonzero().squeeze(1).split(_ROWS_AT_ONCE):
            rough, bar = similarity[active], worst[active]
            places, columns = self._preselect(rough, bar, self.error)
            if len(places) > _MANY * rough.numel():
                # Features are so alike that products in fp32 cannot tell them apart.
                fine = self._unit(anchors[active], torch.float64) @ self._unit(candidates, torch.float64).T
                places, columns = self._preselect(fine.masked_fill_(rough == -torch.inf, -torch.inf), bar, _ROUNDOFF)
            self._merge(*self.verify(anchors[active[places]], candidates[columns]))

    def verify(self, anchors: Tensor, partners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Exact cosines of preselected pairs; those outside the band are removed."""
        cosines = _exact_cosines(self.features, self.norms, anchors, partners)
        inside = (cosines >= self.lower) & (cosines <= self.upper)
        return anchors[inside], partners[inside], cosines[inside]

    def _unit(self, rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return (self.features[rows].double() / self.norms[rows, None]).to(dtype)

    def _note_nearest(self, anchors: Tensor, candidates: Tensor, similarity: Tensor, peaks: Tensor) -> None:
        closer = (peaks > self.nearest[anchors]).nonzero().squeeze(1)
        self.nearest[anchors[closer]] = peaks[closer]
        duplicates = closer[peaks[closer] > self.upper + self.error]
        if len(duplicates):
            self.nearest_rows[anchors[duplicates]] = candidates[similarity[duplicates].argmax(1)]

    def _preselect(self, similarity: Tensor, worst: Tensor, error: float) -> tuple[Tensor, Tensor]:
        """Places that may hold one of the best; errors up to the given one neither hide nor displace a right one."""
        surely_below = similarity.masked_fill(similarity > self.upper - error, -torch.inf)
        count = min(self.cosines.shape[1], similarity.shape[1])
        last_best = surely_below.topk(count, dim=1).values[:, -1]
        if count < self.cosines.shape[1]:
            last_best = torch.full_like(last_best, -torch.inf)
        cut = torch.maximum(worst, last_best)[:, None] - 2 * error
        return ((similarity >= cut) & (similarity <= self.upper + error)).nonzero(as_tuple=True)

    def _merge(self, anchors: Tensor, partners: Tensor, cosines: Tensor) -> None:
        touched = anchors.unique()
        width = self.cosines.shape[1]
        anchors = torch.cat([touched.repeat_interleave(width), anchors])
        partners = torch.cat([self.rows[touched].flatten(), partners])
        cosines = torch.cat([self.cosines[touched].flatten(), cosines])
        order = _lexsort(anchors, -cosines, partners)
        # No group has fewer entries than fit.
        best = order[_rank_in_group(anchors[order]) < width].view(-1, width)
        self.cosines[touched], self.rows[touched] = cosines[best], partners[best]

    def result(self) -> BandNeighbors:
        return BandNeighbors(self.cosines, self.rows, self.nearest, self.nearest_rows)


def _all_in_band(
    features: Tensor, lower: float, upper: float, block_size: int, progress: Callable | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors, partners and cosines of all pairs in the band, each in both directions."""
    search, found, total = _Search(features, lower, upper), [], 0
    for first, second, similarity in search.blocks(block_size, progress):
        near = (similarity >= search.lower - search.error) & (similarity <= search.upper + search.error)
        places, columns = near.nonzero(as_tuple=True)
        anchors, partners = first[places], second[columns]
        rising = anchors < partners
        found.append(search.verify(anchors[rising], partners[rising]))
        total += len(found[-1][0])
        if total > _MAX_HITS:
            raise ValueError(
                f'more than {_MAX_HITS:,} pairs lie in the band {lower} ... {upper}: raise `lower` or set '
                '`max_per_anchor`'
            )
    empty = search.alive[:0], search.alive[:0], features.new_empty(0, dtype=torch.float32)
    anchors, partners, cosines = (torch.cat(parts) for parts in zip(empty, *found, strict=True))
    return torch.cat([anchors, partners]), torch.cat([partners, anchors]), cosines.repeat(2)


def _select(
    anchors: Tensor, partners: Tensor, cosines: Tensor, count: int, max_partner_uses: int | None, mutual: bool
) -> tuple[Tensor, Tensor]:
    """Apply the cap on partners, and list every pair once."""
    if mutual:
        kept = torch.isin(anchors * count + partners, partners * count + anchors)
        anchors, partners, cosines = anchors[kept], partners[kept], cosines[kept]
    if max_partner_uses is not None:
        if max_partner_uses < 1:
            raise ValueError(f'max_partner_uses must be at least 1, or None for any number, got {max_partner_uses}')
        order = _lexsort(partners, -cosines, anchors)
        order = order[_rank_in_group(partners[order]) < max_partner_uses]
        anchors, partners, cosines = anchors[order], partners[order], cosines[order]
    codes, order = (torch.minimum(anchors, partners) * count + torch.maximum(anchors, partners)).sort()
    first = torch.ones_like(codes, dtype=torch.bool)
    first[1:] = codes[1:] != codes[:-1]
    codes = codes[first]
    return torch.stack([codes // max(count, 1), codes % max(count, 1)], dim=1), cosines[order[first]]


def _float32(value: float) -> float:
    """The fp32 number nearest to a bound, with which fp32 cosines are compared."""
    return float(torch.tensor(value, dtype=torch.float32))


def _multiply(first: Tensor, second: Tensor) -> Tensor:
    """Products of all rows in full fp32, whatever faster format is allowed elsewhere."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')
    try:
        with torch.autocast(first.device.type, enabled=False):
            return first @ second.T
    finally:
        torch.set_float32_matmul_precision(precision)


def _row_norms(features: Tensor) -> Tensor:
    """Lengths of all rows, fp64, (K,)."""
    parts = features.split(max(1, _EXACT_BLOCK // features.shape[1]))
    norms = torch.cat([part.double().square().sum(1).sqrt() for part in parts])
    if not bool(norms.isfinite().all()):
        raise ValueError(f'{int((~norms.isfinite()).sum())} of {len(norms)} features are not finite')
    return norms


def _exact_cosines(features: Tensor, norms: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Cosines of pairs of rows in fp64, rounded to fp32; every pair is summed by itself."""
    size = max(1, _EXACT_BLOCK // features.shape[1])
    parts = [
        (features[a].double() * features[b].double()).sum(1) / (norms[a] * norms[b]).clamp_min(1e-300)
        for a, b in zip(first.split(size), second.split(size), strict=True)
    ]
    return torch.cat(parts).float()


def _lexsort(*keys: Tensor) -> Tensor:
    """Order of rows by several keys, the first one foremost, all rising."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order


def _rank_in_group(sorted_keys: Tensor) -> Tensor:
    """Place of every entry among those with the same key."""
    places = torch.arange(len(sorted_keys), device=sorted_keys.device)
    return places - torch.searchsorted(sorted_keys, sorted_keys)
