"""Exact nearest neighbors: this project against faiss, scikit-learn and plain torch, interleaved in one process.

python tools/benchmarks/search.py writes docs/benchmarks/search.json and search.md.
"""

import argparse
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

import faiss
import numpy as np
import sklearn
import torch
from harness import markdown_table, parse_options, take_turns, write_report
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.functional import normalize

from mm_sop.functional import neighbors
from mm_sop.functional.neighbors import nearest_neighbors

PAGE = """\
# Exact search

{bank:,} x {queries:,} features of width {dim}, top {neighbors}, {threads} threads. All methods take turns in one
process; the ratio is the median over {repeats} turns of the time divided by that of faiss in the same turn.

`mm_sop` leaves searches by cosine to faiss from a size on, on the CPU in fp32, and puts ties in order. The
row below it is its own search in blocks, which does all others: small, on a GPU, in fp64, without faiss.

{table}

Command: `python tools/benchmarks/search.py`
"""
Search = Callable[[Tensor, Tensor, int], np.ndarray]
"""Rows of the nearest neighbors, (n, k), of normalized queries in a normalized bank."""


def search_ours(queries: Tensor, bank: Tensor, count: int) -> np.ndarray:
    return nearest_neighbors(queries, bank, count)[1].numpy()


def search_without_faiss(queries: Tensor, bank: Tensor, count: int) -> np.ndarray:
    with patch.object(neighbors, 'find_spec', return_value=None):
        return search_ours(queries, bank, count)


def search_faiss(queries: Tensor, bank: Tensor, count: int) -> np.ndarray:
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank.numpy())
    return index.search(queries.numpy(), count)[1]


def search_sklearn(queries: Tensor, bank: Tensor, count: int) -> np.ndarray:
    # On the sphere the Euclidean order is that of the cosines.
    index = NearestNeighbors(n_neighbors=count, algorithm='brute').fit(bank.numpy())
    return index.kneighbors(queries.numpy(), return_distance=False)


def search_torch(queries: Tensor, bank: Tensor, count: int) -> np.ndarray:
    return torch.cat([(rows @ bank.T).topk(count, dim=1).indices for rows in queries.split(512)]).numpy()


SEARCHES: dict[str, Search] = {
    'mm_sop': search_ours,
    'mm_sop where faiss is not installed': search_without_faiss,
    'faiss IndexFlatIP': search_faiss,
    'scikit-learn brute': search_sklearn,
    'torch matmul + topk': search_torch,
}


def brute_force(queries: Tensor, bank: Tensor, count: int) -> np.ndarray:
    """Neighbors in fp64; of equal cosines the smaller row comes first."""
    cosines = queries.double() @ bank.double().T
    return cosines.sort(dim=1, descending=True, stable=True).indices[:, :count].numpy()


def recall(rows: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(*pair)) / len(pair[1]) for pair in zip(rows, truth, strict=True)]))


def keeps_ties_in_order(search: Search) -> bool:
    """Whether copies of one vector are found in the order of their rows."""
    bank = normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(1)), dim=1).repeat(20, 1)
    return np.array_equal(search(bank[:40], bank, 10), brute_force(bank[:40], bank, 10))


def measure(args: argparse.Namespace) -> dict[str, dict]:
    generator = torch.Generator().manual_seed(0)
    bank, queries = (
        normalize(torch.randn(count, args.dim, generator=generator), dim=1) for count in (args.bank, args.queries)
    )
    checked = queries[: args.checked]
    truth = brute_force(checked, bank, args.neighbors)
    results = {name: dict(seconds=[], ties_by_row=keeps_ties_in_order(search)) for name, search in SEARCHES.items()}
    searches = {name: partial(search, queries, bank, args.neighbors) for name, search in SEARCHES.items()}
    for timed in take_turns(searches, args.repeats):
        results[timed.name]['seconds'].append(round(timed.seconds, 3))
        results[timed.name]['recall'] = recall(timed.result[: args.checked], truth)
    for result in results.values():
        pairs = zip(result['seconds'], results['faiss IndexFlatIP']['seconds'], strict=True)
        result['ratio_to_faiss'] = round(median(own / faiss_seconds for own, faiss_seconds in pairs), 3)
    return results


def main() -> None:
    sizes = dict(bank=50_000, queries=5_000, dim=384, neighbors=200, checked=200, repeats=3, threads=2)
    args = parse_options(__doc__, **sizes, out=Path('docs/benchmarks/search.json'))
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    versions = dict(torch=torch.__version__, faiss=faiss.__version__, sklearn=sklearn.__version__)
    sizes = {name: getattr(args, name) for name in sizes}
    record = dict(**sizes, machine=platform.machine(), versions=versions, methods=measure(args))
    titles = ['method', 'seconds, median', 'ratio to faiss', 'recall against fp64', 'ties by row']
    rows = [
        [
            *(name, f'{median(each["seconds"]):.1f}', f'{each["ratio_to_faiss"]:.2f}', f'{each["recall"]:.6f}'),
            'yes' if each['ties_by_row'] else 'no',
        ]
        for name, each in record['methods'].items()
    ]
    table = markdown_table(titles, rows, ['left', 'right', 'right', 'right', 'left'])
    write_report(record, args.out, PAGE.format(**sizes, table=table))


if __name__ == '__main__':
    main()
