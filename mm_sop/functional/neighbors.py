"""Exact nearest-neighbor search: the k nearest rows of a bank, and the nearest rows inside a band of cosines."""

from collections.abc import Callable, Iterator
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
_MAX_PAIRS = 2**26


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
    _check_features(queries, bank, num_neighbors)
    if metric not in METRICS:
        raise ValueError(f'metric must be one of {METRICS}, got {metric!r}')
    dtype = torch.promote_types(torch.promote_types(queries.dtype, bank.dtype), torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        if metric == 'euclidean':
            similarity, rows = _search_by_distance(queries.double(), bank.double(), num_neighbors)
        else:
            queries, bank = (unit_rows(features.to(dtype)) for features in (queries, bank))
            search = _search_by_faiss if _faiss_is_faster(queries, bank) else _search_by_blocks
            similarity, rows = search(queries, bank, num_neighbors)
    return _order_ties(similarity, rows)


def stable_topk(similarity: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Like :func:`torch.topk` over the last dimension, with ties broken by the smaller column.

    Args:
        similarity: (n, N).
        num_neighbors: Number k of entries, at most N.

    Returns:
        Values in descending order and their columns, both (n, k).
    """
    return _order_ties(*_largest(similarity, num_neighbors))


def merge_neighbors(cosines: Tensor, rows: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Keep the nearest of the candidates found in several shards of a bank.

    Args:
        cosines: Cosines of all candidates, (n, m).
        rows: Their rows in the whole bank, (n, m).
        num_neighbors: Number k of neighbors to keep, at most m.

    Returns:
        Cosines and rows, both (n, k), ordered as by :func:`nearest_neighbors`.
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


@dataclass
class BandNeighbors:
    """For every image its most similar other images inside a band of cosines.

    Attributes:
        cosines: Descending in every row, fp32, (K, m); ``-inf`` where there are fewer than m.
        rows: Their indices, int64, (K, m); -1 where there are fewer.
        nearest: Cosine of the most similar other image, in the band or not, (K,), with the rounding of a matrix product
            in fp32; for histograms.
        nearest_rows: Index of that image where it is above the band, else -1, (K,).
    """

    cosines: Tensor
    rows: Tensor
    nearest: Tensor
    nearest_rows: Tensor


@torch.no_grad()
def search_in_band(
    features: Tensor,
    lower: float,
    upper: float,
    num_neighbors: int = 1,
    block_size: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> BandNeighbors:
    """Find for every image the most similar other images with ``lower <= cosine <= upper``.

    Matrix products in fp32 select candidates: with a bound on their rounding errors, none is lost. The cosines that
    decide are computed pair by pair in fp64 and rounded to fp32, so the result depends neither on ``block_size`` nor on
    the number of threads. Ties are broken by the smaller index. The result for a higher ``lower`` is the same without
    the entries below it.

    Args:
        features: Features, (K, D), of any length. Rows of zeros have no neighbors.
        lower: Lower bound of the cosine.
        upper: Upper bound.
        num_neighbors: Number m of neighbors to keep, at least 1.
        block_size: Rows and columns that are compared at once.
        progress: Called with the numbers of finished and of all row blocks.

    Returns:
        The neighbors.

    Raises:
        ValueError: If an argument is out of range or a feature is not finite.
    """
    if num_neighbors < 1:
        raise ValueError(f'max_per_anchor must be at least 1, or None for all, got {num_neighbors}')
    search, count, device = _BandSearch(features, lower, upper), len(features), features.device
    best = BandNeighbors(
        cosines=torch.full((count, num_neighbors), -torch.inf, device=device),
        rows=torch.full((count, num_neighbors), -1, device=device),
        nearest=torch.full((count,), -torch.inf, device=device),
        nearest_rows=torch.full((count,), -1, device=device),
    )
    for first, second, similarity in search.blocks(block_size, progress):
        search.update(best, first, second, similarity)
        if first is not second:
            search.update(best, second, first, similarity.T)
    return best


@torch.no_grad()
def pairs_in_band(
    features: Tensor,
    lower: float,
    upper: float,
    block_size: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Find all pairs of images inside a band, with the cosines of :func:`search_in_band`.

    Args:
        features: Features, (K, D), of any length. Rows of zeros are in no pair.
        lower: Lower bound of the cosine.
        upper: Upper bound.
        block_size: Rows and columns that are compared at once.
        progress: Called with the numbers of finished and of all row blocks.

    Returns:
        Pairs {i, j}, i < j, int64, (M, 2), and their cosines, fp32, (M,).

    Raises:
        ValueError: If an argument is out of range, a feature is not finite, or there are more than 67 million pairs.
    """
    search, total = _BandSearch(features, lower, upper), 0
    pairs, cosines = [search.alive.new_empty(0, 2)], [search.norms.new_empty(0, dtype=torch.float32)]
    for first, second, similarity in search.blocks(block_size, progress):
        near = (similarity >= search.lower - search.error) & (similarity <= search.upper + search.error)
        rows, columns = near.nonzero(as_tuple=True)
        candidates = torch.stack([first[rows], second[columns]], dim=1)
        candidates = candidates[candidates[:, 0] < candidates[:, 1]]
        exact, inside = search.verify(candidates)
        pairs.append(candidates[inside])
        cosines.append(exact[inside])
        total += len(pairs[-1])
        if total > _MAX_PAIRS:
            raise ValueError(
                f'more than {_MAX_PAIRS:,} pairs lie in the band {lower} ... {upper}: raise `lower` or set '
                '`max_per_anchor`'
            )
    return torch.cat(pairs), torch.cat(cosines)


def pair_cosines(features: Tensor, pairs: Tensor) -> Tensor:
    """Cosines of single pairs, computed in fp64 one by one and rounded to fp32.

    Args:
        features: Features, (K, D), of any length; a row of zeros has cosine 0 to all others.
        pairs: Indices, int64, (n, 2).

    Returns:
        Cosines, fp32, (n,).
    """
    return _exact_cosines(features, _row_norms(features), pairs)


class _BandSearch:
    """Blocks of similarities of all rows with each other, and the bounds that decide which are computed exactly."""

    def __init__(self, features: Tensor, lower: float, upper: float) -> None:
        if features.ndim != 2 or not features.shape[1]:
            raise ValueError(f'expected features (K, D), got {tuple(features.shape)}')
        if not -1 <= lower <= upper <= 1:
            raise ValueError(f'expected -1 <= lower <= upper <= 1, got lower={lower} and upper={upper}')
        self.features = features
        self.norms = _row_norms(features)
        self.alive = self.norms.nonzero().squeeze(1)
        # Bounds the rounding of a sum, in any order, of D products of unit vectors that are rounded themselves.
        self.error = (features.shape[1] + 8) * _ROUNDOFF
        # Exact cosines are fp32 numbers; so are the bounds that they are compared with.
        self.lower, self.upper = torch.tensor([lower, upper], dtype=torch.float32).tolist()

    def blocks(self, block_size: int, progress: Callable | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield indices (a,) and (b,) of two blocks and their similarities, (a, b): every unordered pair once.

        The similarity of an image to itself is ``-inf``.
        """
        if block_size < 1:
            raise ValueError(f'block_size must be at least 1, got {block_size}')
        blocks = self.alive.split(block_size) if len(self.alive) else ()
        for number, first in enumerate(blocks):
            for second in blocks[number:]:
                similarity = self._similarity(first, second)
                yield first, second, similarity.fill_diagonal_(-torch.inf) if second is first else similarity
            if progress is not None:
                progress(number + 1, len(blocks))

    def update(self, best: BandNeighbors, anchors: Tensor, candidates: Tensor, similarity: Tensor) -> None:
        """Take a block into account: ``similarity[a, b]`` is that of ``anchors[a]`` and ``candidates[b]``."""
        peaks = similarity.amax(1)
        closer = (peaks > best.nearest[anchors]).nonzero().squeeze(1)
        best.nearest[anchors[closer]] = peaks[closer]
        duplicates = closer[peaks[closer] > self.upper + self.error]
        best.nearest_rows[anchors[duplicates]] = candidates[similarity[duplicates].argmax(1)]

        worst = best.cosines[anchors, -1].clamp_min(self.lower)
        active = (peaks >= worst - self.error).nonzero().squeeze(1)
        if not len(active):
            return
        anchors, similarity, worst = anchors[active], similarity[active], worst[active]
        count = best.cosines.shape[1]
        rows, columns = self._preselect(similarity, worst, count, self.error)
        if len(rows) > similarity.numel() / 16:
            # Features are so alike that products in fp32 cannot tell them apart.
            in_double = self._similarity(anchors, candidates, torch.float64)
            in_double.masked_fill_(similarity == -torch.inf, -torch.inf)
            rows, columns = self._preselect(in_double, worst, count, _ROUNDOFF)
        pairs = torch.stack([anchors[rows], candidates[columns]], dim=1)
        cosines, inside = self.verify(pairs)
        rows, partners, cosines = rows[inside], pairs[inside, 1], cosines[inside]

        # Lay out what was found as one line of candidates for every anchor.
        position = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
        width = int(rows.bincount(minlength=1).max())
        found_cosines = cosines.new_full((len(anchors), width), -torch.inf).index_put((rows, position), cosines)
        found_rows = partners.new_full((len(anchors), width), -1).index_put((rows, position), partners)
        best.cosines[anchors], best.rows[anchors] = merge_neighbors(
            torch.cat([best.cosines[anchors], found_cosines], 1), torch.cat([best.rows[anchors], found_rows], 1), count
        )

    def verify(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Exact cosines of pairs, (n,), and whether they are inside the band."""
        cosines = _exact_cosines(self.features, self.norms, pairs)
        return cosines, (cosines >= self.lower) & (cosines <= self.upper)

    def _preselect(self, similarity: Tensor, worst: Tensor, count: int, error: float) -> tuple[Tensor, Tensor]:
        """Rows and columns of all entries that may be among the best, whatever rounding up to ``error`` hides."""
        if count <= similarity.shape[1]:
            surely_below = similarity.masked_fill(similarity > self.upper - error, -torch.inf)
            worst = torch.maximum(worst, surely_below.topk(count, dim=1).values[:, -1])
        cut = worst[:, None] - 2 * error
        return ((similarity >= cut) & (similarity <= self.upper + error)).nonzero(as_tuple=True)

    def _similarity(self, first: Tensor, second: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Products of unit rows in full precision, whatever faster format is allowed elsewhere."""
        units = [(self.features[rows].double() / self.norms[rows, None]).to(dtype) for rows in (first, second)]
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision('highest')
        try:
            with torch.autocast(first.device.type, enabled=False):
                return units[0] @ units[1].T
        finally:
            torch.set_float32_matmul_precision(precision)


def _row_norms(features: Tensor) -> Tensor:
    """Lengths of all rows, fp64, (K,)."""
    blocks = features.split(max(1, _EXACT_BLOCK // features.shape[1]))
    norms = torch.cat([block.double().square().sum(1).sqrt() for block in blocks])
    if not bool(norms.isfinite().all()):
        raise ValueError(f'{int((~norms.isfinite()).sum())} of {len(norms)} features are not finite')
    return norms


def _exact_cosines(features: Tensor, norms: Tensor, pairs: Tensor) -> Tensor:
    """Cosines of pairs of rows, (n, 2) -> (n,), in fp64, rounded to fp32; every pair is summed by itself."""
    cosines = [
        (features[i].double() * features[j].double()).sum(1) / (norms[i] * norms[j]).clamp_min(1e-300)
        for i, j in (block.unbind(1) for block in pairs.split(max(1, _EXACT_BLOCK // features.shape[1])))
    ]
    return torch.cat(cosines).float()


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
    cut = _cut_among_equals(cosines, count)
    cosines, rows = cosines[:, :count], rows[:, :count]
    if len(cut):
        cosines[cut], rows[cut] = _search_by_blocks(queries[cut], bank, count)
    return cosines, rows


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
    return -squares.clamp(min=0).sqrt(), rows


def _search_by_blocks(queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    block = max(1, _SIMILARITY_BLOCK // (len(bank) * bank.element_size()))
    # Allocating new memory for every block would take about as long as the product itself.
    buffer = queries.new_empty(min(block, len(queries)), len(bank))
    found = [_largest(torch.mm(rows, bank.T, out=buffer[: len(rows)]), count) for rows in queries.split(block)]
    similarity, rows = zip(*found, strict=True)
    return torch.cat(similarity), torch.cat(rows)


def _largest(similarity: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest entries of every row in descending order; of equals at the cut, those with the smallest columns."""
    values, columns = similarity.topk(min(count + 1, similarity.shape[1]), dim=1)
    cut = _cut_among_equals(values, count)
    values, columns = values[:, :count], columns[:, :count]
    if len(cut):
        ordered = similarity[cut].sort(dim=1, descending=True, stable=True)
        values[cut], columns[cut] = ordered.values[:, :count], ordered.indices[:, :count]
    return values, columns


def _cut_among_equals(similarity: Tensor, count: int) -> Tensor:
    """Rows whose first entry left out equals the last one kept, so that a search may have found any of the equals."""
    if similarity.shape[1] == count:
        return similarity.new_empty(0, dtype=torch.int64)
    return (similarity[:, count - 1] == similarity[:, count]).nonzero().squeeze(1)


def _order_ties(similarity: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Order equal neighbors by row."""
    tied = (similarity[:, 1:] == similarity[:, :-1]).any(1).nonzero().squeeze(1)
    similarity[tied], rows[tied] = merge_neighbors(similarity[tied], rows[tied], rows.shape[1])
    return similarity, rows


def _check_features(queries: Tensor, bank: Tensor, num_neighbors: int) -> None:
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(f'expected features (n, D) and (N, D), got {tuple(queries.shape)} and {tuple(bank.shape)}')
    if not 1 <= num_neighbors <= len(bank):
        raise ValueError(
            f'num_neighbors={num_neighbors} does not fit a bank of {len(bank)} features: choose 1 ... {len(bank)}'
        )
    for name, features in (('queries', queries), ('bank', bank)):
        if not bool(features.isfinite().all()):
            raise ValueError(f'features of the {name} are not finite: the network has diverged')
