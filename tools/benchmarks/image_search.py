"""How long one search of 100,000 images takes: index of random features, memory-mapped as by tools/search_images.py.

Writes docs/benchmarks/image_search.json and .md. The widths are those of the features.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import ROOT, markdown_table, parse_options, write_report
from torch.nn.functional import normalize

import mm_sop  # noqa: F401
from mm_sop.apps.search import SearchServer
from mm_sop.evaluation.retrieval.image_index import FILE_LIST, ImageFile, ImageIndex


def write_index(store: Path, images: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    np.save(store / 'features.npy', normalize(torch.randn(images, width, generator=generator)).numpy())
    files = [ImageFile(f'folder/image_{number:09d}.jpg', 1, 1, f'{number:064x}') for number in range(images)]
    (store / FILE_LIST).write_text(json.dumps(dict(features='features.npy', files=files, unreadable=[])))


def measure(args: argparse.Namespace, width: int) -> dict[str, float]:
    """Milliseconds of opening the index and of the searches."""
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder), args.images, width)
        started = time.perf_counter()
        index = ImageIndex(folder, folder)
        opened = time.perf_counter() - started
        with SearchServer(index, encoder=None) as server:
            times = [time_search(server, number, args.matches) for number in range(args.searches + 1)]
    # The first one reads the features from the disk.
    quantiles = statistics.quantiles(times[1:], n=20, method='inclusive')
    figures = dict(opening=opened, first=times[0], median=quantiles[9], p95=quantiles[18])
    return {name: round(1000 * seconds, 1) for name, seconds in figures.items()}


def time_search(server: SearchServer, number: int, matches: int) -> float:
    started = time.perf_counter()
    found = server.search_by_image(number, matches)
    seconds = time.perf_counter() - started
    if len(found['matches']) != matches:
        raise RuntimeError(f'{matches} matches were asked for and {len(found["matches"])} found')
    return seconds


def main() -> None:
    args = parse_options(
        __doc__,
        images=100_000,
        widths=[192, 384, 768, 2048],
        matches=48,
        searches=50,
        threads=2,
        out=ROOT / 'docs/benchmarks/image_search.json',
    )
    torch.set_num_threads(args.threads)
    settings = {name: getattr(args, name) for name in ('images', 'matches', 'searches', 'threads')}
    machine = dict(torch=torch.__version__, cores=os.cpu_count(), load_before=round(os.getloadavg()[0], 1))
    results = {str(width): measure(args, width) for width in args.widths}
    titles = ['width of the features', 'opening, ms', 'first search, ms', 'median, ms', '95th percentile, ms']
    rows = [[width, *(f'{value:.0f}' for value in times.values())] for width, times in results.items()]
    page = (
        f'# Search by image\n\nOne query among {args.images:,} images, {args.matches} matches, from the query’s '
        f'features to the answer of the page’s server, exact. PyTorch {machine["torch"]}, {args.threads} threads, '
        f'{machine["cores"]} cores, load average before the run {machine["load_before"]}.\n\n'
        f'{markdown_table(titles, rows, ["right"] * 5)}\n\n'
        'The first search reads the features from the disk.\n\n    python tools/benchmarks/image_search.py\n'
    )
    write_report(dict(settings=settings, machine=machine, results=results), args.out, page)


if __name__ == '__main__':
    main()
