"""Time and memory of mining semantic pairs among features of a large set, beside those of the bare matrix products.

python tools/benchmarks/mining.py writes docs/benchmarks/mining.json and mining.md. It takes several minutes. Every
``sampled``-th of the bare products is timed.
"""

import argparse
import resource
import shlex
import sys
import time
from pathlib import Path

import torch
from harness import parse_options, processor_name, write_report
from torch import Tensor
from torch.nn.functional import normalize

from mm_sop.functional import mine_semantic_pairs

PAGE = """\
# Mining of semantic pairs

`{command}`

{images:,} features of width {width}, fp32, in clusters of five; band {lower} to {upper}, one partner per image, blocks
of {block_size:,}. {threads} threads, {processor}, torch {torch}.

| | |
| --- | ---: |
| time | {seconds:.0f} s |
| bare products of the same blocks | {product_seconds:.0f} s, every {sampled}th of them timed in the same process |
| ratio | {ratio:.2f} |
| pairs, and clusters that they stay in | {pairs:,}, {within:.2%} |
| features | {feature_mib:,.0f} MiB |
| memory beside the features, at most | {memory_mib:,.0f} MiB |
| all similarities would take | {matrix_mib:,.0f} MiB |
"""


def make_features(count: int, width: int) -> tuple[Tensor, Tensor]:
    """Features, and the cluster of each: five around each center, with cosines of about 0.96, in random order."""
    generator = torch.Generator().manual_seed(0)
    features = torch.empty(count, width)
    order = torch.randperm(count, generator=generator)
    for rows in order.split(5):
        center = normalize(torch.randn(width, generator=generator), dim=0)
        noise = normalize(torch.randn(len(rows), width, generator=generator), dim=1)
        features[rows] = center + 0.2 * noise
    return features, order.argsort() // 5


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_products(features: Tensor, block_size: int, sampled: int) -> float:
    """Seconds of the products of all pairs of blocks, from a sample of them."""
    blocks = features.split(block_size)
    pairs = [(first, second) for number, first in enumerate(blocks) for second in blocks[number:]][::sampled]
    started = time.perf_counter()
    for first, second in pairs:
        first @ second.T
    elements = sum(len(first) * len(second) for first, second in pairs)
    return (time.perf_counter() - started) * len(features) * (len(features) + block_size) / 2 / elements


def measure(args: argparse.Namespace) -> dict:
    features, clusters = make_features(args.images, args.width)
    # The first product of a process sets up its threads.
    features[:1024] @ features[:1024].T
    before, started = peak_mib(), time.perf_counter()
    pairs, _ = mine_semantic_pairs(
        features,
        args.lower,
        args.upper,
        block_size=args.block_size,
        progress=lambda done, total: print(f'{done} of {total} rows of blocks', flush=True),
    )
    seconds, memory = time.perf_counter() - started, peak_mib() - before
    product_seconds = time_products(features, args.block_size, args.sampled)
    return dict(
        {key: value for key, value in vars(args).items() if key != 'out'},
        command=shlex.join(['python', *sys.argv]),
        threads=torch.get_num_threads(),
        processor=processor_name(),
        torch=torch.__version__,
        seconds=seconds,
        product_seconds=product_seconds,
        ratio=seconds / product_seconds,
        pairs=len(pairs),
        within=float((clusters[pairs[:, 0]] == clusters[pairs[:, 1]]).float().mean()),
        feature_mib=features.numel() * 4 / 2**20,
        memory_mib=memory,
        matrix_mib=args.images**2 * 4 / 2**20,
    )


if __name__ == '__main__':
    sizes = dict(images=100_000, width=2048, block_size=2048, lower=0.93, upper=0.99, sampled=20)
    arguments = parse_options(__doc__, **sizes, out=Path('docs/benchmarks/mining.json'))
    record = measure(arguments)
    write_report(record, arguments.out, PAGE.format(**record))
