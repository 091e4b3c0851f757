"""Exact nearest-neighbor search: the k nearest rows of a bank, and the nearest rows inside a band of cosines."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

METRICS = ('cosine', 'euclidean')
"""Similarities by which neighbors are searched; that of the second is the negative distance."""

# Largest block of the query-by-bank similarity matrix that is held at once, in bytes.
_SIMILARITY_BLOCK = 2**27
# Unit roundoff of fp32.
_ROUNDOFF = 2.0**-24
# Elements of one temporary array of exact cosines: few enough for a processor's cache.
_EXACT_BLOCK = 2**16
# Pairs inside a band that are held at once if all are asked for, and fewer that are never worth sorting out.
_MAX_PAIRS, _FEW_PAIRS = 2**26, 2**20


@torch.no_grad()
def nearest_neighbors(
    queries: Tensor, bank: Tensor, num_neighbors: int, metric: str = 'cosine'
) -> tuple[Tensor, Tensor]:
    """Find the nearest rows of a bank, exactly.

    Large searches by cosine in fp32 on the CPU run in faiss where it is installed. Distances are computed in fp64.

    Args:
        queries: Features, (n, D), of any length.
        bank: Features to search, (N, D), of any length.
        num_neighbors: Number k of neighbors, in [1, N].
        metric: ``'cosine'``, or ``'euclidean'`` for the distance of the features without normalization.

    Returns:
        Similarities (cosines, or negative distances in fp64) in descending order and rows of the bank, both (n, k).
        Equal similarities are ordered by row.

    Raises:
        ValueError: If the shapes do not fit, N is less than k, a feature is not finite, or the metric is unknown.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
        >>> similarity, rows = nearest_neighbors(torch.tensor([[3.0, 0.0]]), bank, num_neighbors=2)
        >>> rows
        tensor([[0, 2]])
        >>> similarity
        tensor([[1.0000, 0.7071]])
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(f'expected features (n, D) and (N, D), got {tuple(queries.shape)} and {tuple(bank.shape)}')
    if not 1 <= num_neighbors <= len(bank):
        raise ValueError(
            f'num_neighbors={num_neighbors} does not fit a bank of {len(bank)} features: choose 1 ... {len(bank)}'
        )
    for name, features in (('queries', queries), ('bank', bank)):
        if not bool(features.isfinite().all()):
            raise ValueError(f'features of the {name} are not finite: the network has diverged')
    if metric not in METRICS:
        raise ValueError(f'metric must be one of {METRICS}, got {metric!r}')
    with torch.autocast(queries.device.type, enabled=False):
        if metric == 'euclidean':
            return _search_by_distance(queries.double(), bank.double(), num_neighbors)
        dtype = torch.promote_types(torch.promote_types(queries.dtype, bank.dtype), torch.float32)
        queries, bank = (unit_rows(features.to(dtype)) for features in (queries, bank))
        search = _search_by_faiss if _faiss_is_faster(queries, bank) else _search_by_blocks
        return search(queries, bank, num_neighbors)


def stable_topk(similarity: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Like :func:`torch.topk` over the columns of (n, N), with ties broken by the smaller column."""

    def sort_whole(rows: Tensor) -> tuple[Tensor, Tensor]:
        values, columns = similarity[rows].sort(dim=1, descending=True, stable=True)
        return values[:, :num_neighbors], columns[:, :num_neighbors]

    values, columns = similarity.topk(min(num_neighbors + 1, similarity.shape[1]), dim=1)
    return _break_ties(values, columns, num_neighbors, sort_whole)


def merge_neighbors(cosines: Tensor, rows: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Keep the nearest of the candidates found in several shards of a bank.

    Args:
        cosines: Cosines of all candidates, (n, m).
        rows: Their rows in the whole bank, (n, m).
        num_neighbors: Number k of neighbors to keep, at most m; ordered as by :func:`nearest_neighbors`.
    """
    rows, order = rows.sort(dim=1)
    cosines, by_cosine = cosines.gather(1, order).sort(dim=1, descending=True, stable=True)
    return cosines[:, :num_neighbors], rows.gather(1, by_cosine)[:, :num_neighbors]


def unit_rows(features: Tensor) -> Tensor:
    """Scale rows, (n, D), to length 1, also those whose squares overflow or underflow; rows of zeros stay."""
    lengths = features.norm(dim=1, keepdim=True)
    rows = features / lengths
    # The squares of 1e25 overflow in fp32, those of 1e-25 vanish.
    extreme = ((lengths < 1e-15) | (lengths > 1e15)).squeeze(1).nonzero().squeeze(1)
    largest = features[extreme].abs().amax(1, keepdim=True)
    scaled = features[extreme] / largest.where(largest > 0, 1.0)
    rows[extreme] = scaled / scaled.norm(dim=1, keepdim=True).clamp(min=1)
    return rows


def _faiss_is_faster(queries: Tensor, bank: Tensor) -> bool:
    """Whether tools/benchmarks/search.py found faiss faster; a small search is over before threads have started."""
    large = 4 * len(queries) * len(bank) > _SIMILARITY_BLOCK
    return large and queries.device.type == 'cpu' and queries.dtype == torch.float32 and find_spec('faiss') is not None


def _search_by_faiss(queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    wanted = min(count + 1, len(bank))
    found = faiss.knn(queries.numpy(), bank.numpy(), wanted, metric=faiss.METRIC_INNER_PRODUCT)
    cosines, rows = map(torch.from_numpy, found)
    return _break_ties(cosines, rows, count, lambda cut: _search_by_blocks(queries[cut], bank, count))


def _search_by_distance(queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Search by inner products: |q - b|^2 = |q|^2 - 2 (q b - |b|^2 / 2)."""
    # Features far from the origin would cancel. Differences to a row keep ties exact, those to the mean do not.
    queries, bank = queries - bank[0], bank - bank[0]
    products, rows = _search_by_blocks(
        torch.cat([queries, queries.new_ones(len(queries), 1)], 1),
        torch.cat([bank, bank.square().sum(1, keepdim=True) / -2], 1),
        count,
    )
    squares = queries.square().sum(1, keepdim=True) - 2 * products
    # The roots of different squares may be equal.
    return merge_neighbors(-squares.clamp(min=0).sqrt(), rows, count)


def _search_by_blocks(queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    block = max(1, _SIMILARITY_BLOCK // (len(bank) * bank.element_size()))
    # Allocating new memory for every block would take about as long as the product itself.
    buffer = queries.new_empty(min(block, len(queries)), len(bank))
    found = [stable_topk(torch.mm(rows, bank.T, out=buffer[: len(rows)]), count) for rows in queries.split(block)]
    similarity, rows = zip(*found, strict=True)
    return torch.cat(similarity), torch.cat(rows)


def _break_ties(
    similarity: Tensor, rows: Tensor, count: int, search_again: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Order equal neighbors by row; where the first one left out equals the last one kept, search again."""
    cut = (similarity[:, count:] == similarity[:, count - 1 : count]).any(1).nonzero().squeeze(1)
    similarity, rows = similarity[:, :count], rows[:, :count]
    if len(cut):
        similarity[cut], rows[cut] = search_again(cut)
    return merge_neighbors(similarity, rows, count)


@dataclass
class BandNeighbors:
    """For every image its most similar other images inside a band of cosines.

    Attributes:
        pairs: Images and their neighbors, int64, (M, 2): by image, the most similar first. All pairs of a band are not
            ordered.
        cosines: Their cosines, fp32, (M,).
        nearest: Cosine of the most similar other image, in the band or not, (K,), with the rounding of a matrix product
            in fp32; for histograms.
        nearest_rows: Index of that image where it is above the band, else -1, (K,).
    """

    pairs: Tensor
    cosines: Tensor
    nearest: Tensor
    nearest_rows: Tensor


@torch.no_grad()
def search_in_band(
    features: Tensor,
    lower: float,
    upper: float,
    num_neighbors: int | None = 1,
    block_size: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> BandNeighbors:
    """Find for every image the most similar other images with ``lower <= cosine <= upper``.

    Matrix products in fp32 select candidates: with a bound on their rounding errors, none is lost. The cosines that
    decide are computed pair by pair in fp64 and rounded to fp32, so the result depends neither on ``block_size`` nor on
    the number of threads. Ties are broken by the smaller index. The result for a higher ``lower`` is the same without
    the pairs below it.

    Args:
        features: Features, (K, D), of any length. Rows of zeros have no neighbors.
        lower: Lower bound of the cosine.
        upper: Upper bound.
        num_neighbors: Neighbors that an image has at most; None for all in the band.
        block_size: Rows and columns that are compared at once.
        progress: Called with the numbers of finished and of all row blocks.

    Raises:
        ValueError: If an argument is out of range, a feature is not finite, or all of more than 67 million pairs are
            asked for.
    """
    if features.ndim != 2 or not features.shape[1]:
        raise ValueError(f'expected features (K, D), got {tuple(features.shape)}')
    if not -1 <= lower <= upper <= 1:
        raise ValueError(f'expected -1 <= lower <= upper <= 1, got lower={lower} and upper={upper}')
    if num_neighbors is not None and num_neighbors < 1:
        raise ValueError(f'max_per_anchor must be at least 1, or None for all, got {num_neighbors}')
    if block_size < 1:
        raise ValueError(f'block_size must be at least 1, got {block_size}')
    search = _BandSearch(features, lower, upper, num_neighbors)
    blocks = [block for block in search.norms.nonzero().squeeze(1).split(block_size) if len(block)]
    for number, first in enumerate(blocks):
        for second in blocks[number:]:
            similarity = search.similarity(first, second)
            if second is first:
                similarity.fill_diagonal_(-torch.inf)
            search.compare(first, second, similarity)
            if second is not first:
                search.compare(second, first, similarity.T)
        if progress is not None:
            progress(number + 1, len(blocks))
    return BandNeighbors(*search.collect(), search.nearest, search.nearest_rows)


class _BandSearch:
    """What :func:`search_in_band` has found so far, and the bounds that decide which pairs are computed exactly."""

    def __init__(self, features: Tensor, lower: float, upper: float, num_neighbors: int | None) -> None:
        self.features, self.num_neighbors = features, num_neighbors
        self.norms = _row_norms(features)
        # Bounds the rounding of a sum, in any order, of D products of unit vectors that are rounded themselves.
        self.error = (features.shape[1] + 8) * _ROUNDOFF
        # Exact cosines are fp32 numbers; so are the bounds that they are compared with.
        self.lower, self.upper = torch.tensor([lower, upper], dtype=torch.float32).tolist()
        count, device = len(features), features.device
        # Lower bounds of the best cosines in the band that each image has reached, descending.
        self.reached = torch.full((count, num_neighbors or 1), self.lower, device=device)
        self.nearest = torch.full((count,), -torch.inf, device=device)
        self.nearest_rows = torch.full((count,), -1, device=device)
        self.found = [(self.nearest_rows.new_empty(0, 2), self.nearest.new_empty(0))]
        self.num_collected = 0

    def compare(self, anchors: Tensor, others: Tensor, similarity: Tensor) -> None:
        """Collect neighbors of the anchors: ``similarity[a, b]`` is that of ``anchors[a]`` and ``others[b]``."""
        peaks = similarity.amax(1)
        closer = (peaks > self.nearest[anchors]).nonzero().squeeze(1)
        self.nearest[anchors[closer]] = peaks[closer]
        duplicates = closer[peaks[closer] > self.upper + self.error]
        self.nearest_rows[anchors[duplicates]] = others[similarity[duplicates].argmax(1)]

        active = (peaks >= self.reached[anchors, -1] - self.error).nonzero().squeeze(1)
        if not len(active):
            return
        anchors, similarity = anchors[active], similarity[active]
        rows, columns, reached = self._candidates(similarity, self.reached[anchors], self.error)
        if len(rows) > similarity.numel() / 16:
            # Features are so alike that products in fp32 cannot tell them apart.
            in_double = self.similarity(anchors, others, torch.float64)
            in_double.masked_fill_(similarity == -torch.inf, -torch.inf)
            rows, columns, reached = self._candidates(in_double, self.reached[anchors], _ROUNDOFF)
        self.reached[anchors] = reached
        pairs = torch.stack([anchors[rows], others[columns]], dim=1)
        if self.num_neighbors is None:
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
        cosines = pair_cosines(self.features, pairs, self.norms)
        inside = (cosines >= self.lower) & (cosines <= self.upper)
        self.found.append((pairs[inside], cosines[inside]))
        self.num_collected += len(self.found[-1][0])
        if self.num_neighbors is not None and self.num_collected > max(_FEW_PAIRS, 2 * self.reached.numel()):
            self.found, self.num_collected = [self.collect()], 0
        elif self.num_neighbors is None and self.num_collected > _MAX_PAIRS:
            raise ValueError(
                f'more than {_MAX_PAIRS:,} pairs lie in the band {self.lower:g} ... {self.upper:g}: raise `lower` '
                'or set `max_per_anchor`'
            )

    def _candidates(self, similarity: Tensor, reached: Tensor, error: float) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and columns of all entries that may be among the best, whatever rounding up to ``error`` hides."""
        if self.num_neighbors is not None:
            surely_below = similarity.masked_fill(similarity > self.upper - error, -torch.inf)
            best = surely_below.topk(min(self.num_neighbors, similarity.shape[1]), dim=1).values - error
            reached = torch.cat([reached, best.float()], dim=1).topk(self.num_neighbors, dim=1).values
        inside = (similarity >= reached[:, -1:] - error) & (similarity <= self.upper + error)
        return *inside.nonzero(as_tuple=True), reached

    def collect(self) -> tuple[Tensor, Tensor]:
        """All pairs of images and neighbors, and their cosines."""
        pairs, cosines = (torch.cat(parts) for parts in zip(*self.found, strict=True))
        if self.num_neighbors is None:
            return torch.cat([pairs, pairs.flip(1)]), cosines.repeat(2)
        kept = largest_of_groups(pairs[:, 0], pairs[:, 1], cosines, self.num_neighbors)
        return pairs[kept], cosines[kept]

    def similarity(self, first: Tensor, second: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Products of unit rows in full precision, whatever faster format is allowed elsewhere."""
        units = [(self.features[rows].double() / self.norms[rows, None]).to(dtype) for rows in (first, second)]
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision('highest')
        try:
            with torch.autocast(first.device.type, enabled=False):
                return units[0] @ units[1].T
        finally:
            torch.set_float32_matmul_precision(precision)


def largest_of_groups(groups: Tensor, members: Tensor, values: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` largest values of every group, in order; equal ones are ordered by member."""
    # Stable sorts, the least significant key first.
    order = members.argsort(stable=True)
    order = order[values[order].argsort(descending=True, stable=True)]
    order = order[groups[order].argsort(stable=True)]
    ordered = groups[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(ordered, ordered)
    return order[rank < count]


def pair_cosines(features: Tensor, pairs: Tensor, norms: Tensor | None = None) -> Tensor:
    """Cosines of pairs of rows, (n, 2) -> (n,), each summed by itself in fp64 and rounded to fp32.

    Args:
        features: Features, (K, D), of any length; a row of zeros has cosine 0 to all others.
        pairs: Indices, int64, (n, 2).
        norms: Lengths of the features, fp64, (K,), if they are known.
    """
    norms = _row_norms(features) if norms is None else norms
    cosines = [
        (features[i].double() * features[j].double()).sum(1) / (norms[i] * norms[j]).clamp_min(1e-300)
        for i, j in (block.unbind(1) for block in pairs.split(max(1, _EXACT_BLOCK // features.shape[1])))
    ]
    return torch.cat(cosines).float()


def _row_norms(features: Tensor) -> Tensor:
    """Lengths of all rows, fp64, (K,)."""
    blocks = features.split(max(1, _EXACT_BLOCK // features.shape[1]))
    norms = torch.cat([block.double().square().sum(1).sqrt() for block in blocks])
    if not bool(norms.isfinite().all()):
        raise ValueError(f'{int((~norms.isfinite()).sum())} of {len(norms)} features are not finite')
    return norms
