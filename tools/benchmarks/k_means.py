"""k-means: scikit-learn, which this project uses, against faiss, interleaved in one process.

python tools/benchmarks/k_means.py writes docs/benchmarks/k_means.json and k_means.md.
"""

import argparse
import json
import platform
import time
from functools import partial
from pathlib import Path
from statistics import median

import faiss
import numpy as np
import sklearn
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mm_sop.evaluation.representation.clustering import agreement, k_means
from mm_sop.utils.files import write_atomically

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
        for name, cluster in METHODS.items():
            started = time.perf_counter()
            clusters = cluster(features, size[2], seed)
            seconds = time.perf_counter() - started
            runs[name].append((seconds, spread(features, clusters), agreement(labels, clusters)['ari']))
    columns = ('seconds', 'spread', 'ari')
    return {
        name: dict(zip(columns, map(median, zip(*each, strict=True)), strict=True), runs=each)
        for name, each in runs.items()
    }


def format_report(results: list[dict], machine: str) -> str:
    lines = [
        '# k-means',
        '',
        f'Medians over repetitions from different seeds, interleaved in one process; {machine}.',
        'The spread is the mean squared distance to the center, which k-means minimizes; ARI is with the true groups.',
        '',
        '| features | clusters | method | seconds | spread | ARI |',
        '|---|---:|---|---:|---:|---:|',
    ]
    for result in results:
        count, dim, num_clusters = result['size']
        for name, each in result['methods'].items():
            figures = f'{each["seconds"]:.2f} | {each["spread"]:.4f} | {each["ari"]:.3f}'
            lines.append(f'| {count:,} x {dim} | {num_clusters:,} | {name} | {figures} |')
    return '\n'.join([*lines, ''])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--output', type=Path, default=Path('docs/benchmarks'))
    args = parser.parse_args()
    results = []
    for size in SIZES:
        results.append(dict(size=size, methods=measure(size, args.repeats)))
        print(json.dumps(results[-1], indent=1))
    versions = f'faiss {faiss.__version__}, scikit-learn {sklearn.__version__}, torch {torch.__version__}'
    machine = f'{torch.get_num_threads()} threads, {platform.machine()}, {versions}'
    write_atomically(args.output / 'k_means.json', json.dumps(dict(machine=machine, results=results), indent=1))
    write_atomically(args.output / 'k_means.md', format_report(results, machine))


if __name__ == '__main__':
    main()
