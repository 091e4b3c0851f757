"""Weighted nearest-neighbour classification of features."""

import math
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

METRICS = ('cosine', 'euclidean')
"""Likenesses by which neighbours are searched; that of the second is the negative distance."""

# Largest block of the query-by-bank similarity matrix that is held at once, in bytes.
_SIMILARITY_BLOCK = 2**27


def knn_scores(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    num_neighbors: int | Sequence[int],
    temperature: float = 0.07,
    num_classes: int | None = None,
    metric: str = 'cosine',
) -> dict[int, Tensor]:
    """Let the nearest training features vote for the class of test features.

    The protocol of DINO and iBOT: cosine similarity s, weight ``exp(s / temperature)`` of a neighbour's vote. One
    search serves every number of neighbours. With ``metric='euclidean'`` and an infinite temperature it is the majority
    of the nearest by distance, the smallest of equally frequent classes.

    Args:
        train_features: Features of the bank, (N, D), of any length.
        train_labels: Classes of the bank, int64, (N,), each in [0, num_classes).
        test_features: Features to classify, (n, D).
        num_neighbors: Number k of neighbours that vote, or several such numbers, each in [1, N].
        temperature: Temperature of the weights, positive.
        num_classes: Number C of classes. Defaults to the largest label of the bank plus one.
        metric: One of :data:`METRICS`.

    Returns:
        Votes for every k, (n, C), in fp32 (fp64 for fp64 features). The prediction is their argmax.

    Raises:
        ValueError: If shapes, labels or ranges do not fit, N is less than k, or a feature is not finite.
    """
    if train_labels.shape != train_features.shape[:1]:
        raise ValueError(f'{tuple(train_labels.shape)} labels do not match {len(train_features)} training features')
    numbers = [int(number) for number in num_neighbors] if isinstance(num_neighbors, Sequence) else [int(num_neighbors)]
    if min(numbers, default=0) < 1 or not len(train_features):
        raise ValueError(f'num_neighbors={min(numbers, default=0)} does not fit a bank of {len(train_features)}')
    num_classes = int(train_labels.max()) + 1 if num_classes is None else num_classes
    similarity, rows = nearest_neighbors(test_features, train_features, max(numbers), metric)
    return neighbor_votes(similarity, train_labels[rows], numbers, temperature, num_classes)


@torch.no_grad()
def nearest_neighbors(
    queries: Tensor, bank: Tensor, num_neighbors: int, metric: str = 'cosine'
) -> tuple[Tensor, Tensor]:
    """Find the nearest rows of a bank, exactly.

    Large searches by cosine in fp32 on the CPU are left to faiss where it is installed. Distances are computed in fp64.

    Args:
        queries: Features, (n, D), of any length.
        bank: Features among which neighbours are searched, (N, D), of any length.
        num_neighbors: Number k of neighbours, in [1, N].
        metric: ``'cosine'``, or ``'euclidean'`` for the distance of the features as they are.

    Returns:
        Likenesses (cosines, or negative distances in fp64) in falling order and rows of the bank, both (n, k). Of equal
        ones the smaller row comes first.

    Raises:
        ValueError: If the shapes do not fit, N is less than k, a feature is not finite, or the metric is unknown.
    """
    _check_features(queries, bank, num_neighbors)
    if metric not in METRICS:
        raise ValueError(f'metric must be one of {METRICS}, got {metric!r}')
    dtype = torch.promote_types(torch.promote_types(queries.dtype, bank.dtype), torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        if metric == 'euclidean':
            likeness, rows = _search_by_distance(queries.double(), bank.double(), num_neighbors)
        else:
            queries, bank = (unit_rows(features.to(dtype)) for features in (queries, bank))
            search = _search_by_faiss if _faiss_is_faster(queries, bank) else _search_by_blocks
            likeness, rows = search(queries, bank, num_neighbors)
    tied = (likeness[:, 1:] == likeness[:, :-1]).any(1).nonzero().squeeze(1)
    likeness[tied], rows[tied] = merge_neighbors(likeness[tied], rows[tied], num_neighbors)
    return likeness, rows


def unit_rows(features: Tensor) -> Tensor:
    """Rows of length 1, (n, D), for rows of any length that numbers can have; those of zeros stay."""
    lengths = features.norm(dim=1, keepdim=True)
    rows = features / lengths
    # The squares of 1e25 overflow in fp32, those of 1e-25 vanish.
    extreme = ((lengths < 1e-15) | (lengths > 1e15)).squeeze(1).nonzero().squeeze(1)
    largest = features[extreme].abs().amax(1, keepdim=True)
    scaled = features[extreme] / largest.where(largest > 0, 1.0)
    rows[extreme] = scaled / scaled.norm(dim=1, keepdim=True).clamp(min=1)
    return rows


def merge_neighbors(cosines: Tensor, rows: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Keep the nearest of candidates that were found in parts of a bank.

    Args:
        cosines: Cosines of all candidates, (n, m).
        rows: Their rows in the whole bank, (n, m).
        num_neighbors: Number k of neighbours to keep, at most m.

    Returns:
        Cosines and rows, both (n, k), ordered as by :func:`nearest_neighbors`.
    """
    rows, order = rows.sort(dim=1)
    cosines, by_cosine = cosines.gather(1, order).sort(dim=1, descending=True, stable=True)
    return cosines[:, :num_neighbors], rows.gather(1, by_cosine)[:, :num_neighbors]


def neighbor_votes(
    cosines: Tensor,
    labels: Tensor,
    num_neighbors: Sequence[int],
    temperature: float,
    num_classes: int,
) -> dict[int, Tensor]:
    """Sum the weighted votes of neighbours for their classes.

    Args:
        cosines: Cosines of the neighbours in falling order, (n, m), or other likenesses.
        labels: Classes of the neighbours, int64, (n, m), each in [0, num_classes).
        num_neighbors: Numbers k of neighbours that vote, each at most m.
        temperature: Temperature of the weights ``exp(cosine / temperature)``; infinite for equal weights.
        num_classes: Number C of classes.

    Returns:
        Votes for every k, (n, C).

    Raises:
        ValueError: If a label is out of range, or the temperature is not positive or so small that votes overflow.
    """
    limit = math.log(torch.finfo(cosines.dtype).max) - math.log(cosines.shape[1])
    if not temperature > 1 / limit:
        raise ValueError(
            f'temperature must be above {1 / limit:.4f}, else exp(1 / temperature) overflows; got {temperature}'
        )
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f'labels of the bank must be in [0, {num_classes}), found {int(labels.min())} ... {int(labels.max())}'
        )
    weights = (cosines / temperature).exp()
    votes = {k: weights.new_zeros(len(weights), num_classes) for k in num_neighbors}
    for k, result in votes.items():
        result.scatter_add_(1, labels[:, :k], weights[:, :k])
    return votes


def _faiss_is_faster(queries: Tensor, bank: Tensor) -> bool:
    """Where tools/benchmarks/search.py found it to be; a small search is over before threads have started."""
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
    # To get new memory for every block would take about as long as the product itself.
    buffer = queries.new_empty(min(block, len(queries)), len(bank))
    parts = [_largest(torch.mm(part, bank.T, out=buffer[: len(part)]), count) for part in queries.split(block)]
    cosines, rows = zip(*parts, strict=True)
    return torch.cat(cosines), torch.cat(rows)


def _largest(similarity: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest entries of every row; of several equal ones at the end those of the smallest columns."""
    values, columns = similarity.topk(min(count + 1, similarity.shape[1]), dim=1)
    cut = _cut_among_equals(values, count)
    values, columns = values[:, :count], columns[:, :count]
    if len(cut):
        ordered = similarity[cut].sort(dim=1, descending=True, stable=True)
        values[cut], columns[cut] = ordered.values[:, :count], ordered.indices[:, :count]
    return values, columns


def _cut_among_equals(cosines: Tensor, count: int) -> Tensor:
    """Rows in which the first entry left out equals the last one kept: which of equals are found is left open."""
    if cosines.shape[1] == count:
        return cosines.new_empty(0, dtype=torch.int64)
    return (cosines[:, count - 1] == cosines[:, count]).nonzero().squeeze(1)


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
