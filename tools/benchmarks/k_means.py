"""k-means: scikit-learn, which this project uses, against faiss, interleaved in one process.

python tools/benchmarks/k_means.py writes docs/benchmarks/k_means.json and k_means.md.
"""

import platform
from functools import partial
from pathlib import Path
from statistics import median

import faiss
import numpy as np
import sklearn
import torch
from harness import markdown_table, parse_options, take_turns, write_report
from torch import Tensor
from torch.nn.functional import normalize

from mm_sop.evaluation.representation.clustering import agreement, k_means

PAGE = """\
# k-means

Medians over repetitions from different seeds, interleaved in one process; {machine}.
The spread is the mean squared distance to the center, which k-means minimizes; ARI is with the true groups.

{table}
"""
SIZES = ((1_000, 128, 150), (5_000, 384, 100))
"""Features, dimensions and clusters."""


def cluster_faiss(features: Tensor, num_clusters: int, seed: int, restarts: int = 1) -> np.ndarray:
    rows = features.numpy()
    options = dict(niter=100, nredo=restarts, seed=seed, max_points_per_centroid=len(rows), min_points_per_centroid=1)
    method = faiss.Kmeans(rows.shape[1], num_clusters, **options)
    method.train(rows)
    return method.index.search(rows, 1)[1][:, 0]


METHODS = {
    'scikit-learn': k_means,
    'faiss': cluster_faiss,
    'faiss, best of 10': partial(cluster_faiss, restarts=10),
}


def spread(features: Tensor, clusters: np.ndarray) -> float:
    """Mean squared distance to the center of the cluster, which k-means minimizes."""
    members = torch.from_numpy(np.unique(clusters, return_inverse=True)[1])
    sums = torch.zeros(int(members.max()) + 1, features.shape[1]).index_add_(0, members, features)
    centers = sums / members.bincount()[:, None]
    return float((features - centers[members]).square().sum(1).mean())


def make_features(count: int, dim: int, num_clusters: int) -> tuple[Tensor, np.ndarray]:
    """Unit rows around as many centers, and the center of each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_clusters, (count,), generator=generator)
    centers = normalize(torch.randn(num_clusters, dim, generator=generator), dim=1)
    noise = torch.randn(count, dim, generator=generator) / dim**0.5
    return normalize(centers[labels] + noise, dim=1), labels.numpy()


def measure(size: tuple[int, int, int], repeats: int) -> dict[str, dict]:
    features, labels = make_features(*size)
    runs = {name: [] for name in METHODS}
    for seed in range(repeats):
        methods = {name: partial(cluster, features, size[2], seed) for name, cluster in METHODS.items()}
        for name, _, clusters, seconds, _ in take_turns(methods, 1):
            runs[name].append((seconds, spread(features, clusters), agreement(labels, clusters)['ari']))
    columns = ('seconds', 'spread', 'ari')
    return {
        name: dict(zip(columns, map(median, zip(*each, strict=True)), strict=True), runs=each)
        for name, each in runs.items()
    }


def main() -> None:
    args = parse_options(__doc__, repeats=5, output=Path('docs/benchmarks'))
    results = [dict(size=size, methods=measure(size, args.repeats)) for size in SIZES]
    versions = f'faiss {faiss.__version__}, scikit-learn {sklearn.__version__}, torch {torch.__version__}'
    machine = f'{torch.get_num_threads()} threads, {platform.machine()}, {versions}'
    rows = [
        [
            *('{:,} x {}'.format(*result['size']), f'{result["size"][2]:,}', name),
            *(f'{each["seconds"]:.2f}', f'{each["spread"]:.4f}', f'{each["ari"]:.3f}'),
        ]
        for result in results
        for name, each in result['methods'].items()
    ]
    titles = ['features', 'clusters', 'method', 'seconds', 'spread', 'ARI']
    table = markdown_table(titles, rows, ['right', 'right', 'left', 'right', 'right', 'right'])
    report = dict(machine=machine, results=results)
    write_report(report, args.output / 'k_means.json', PAGE.format(machine=machine, table=table))


if __name__ == '__main__':
    main()
