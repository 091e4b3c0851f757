"""Memory and time of listing images, of starting with an index of ten million, and of reading shards.

``python tools/benchmarks/data_at_scale.py --against ../other-checkout`` also measures the lists of another checkout.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from harness import ROOT, markdown_table, parse_options, processor_name, take_turns, write_report

from mm_sop.datasets.samplers import ResumableSampler
from mm_sop.datasets.seeded import SeededDataset
from mm_sop.datasets.shard_writer import write_shards
from mm_sop.datasets.shards import ShardedImages
from mm_sop.datasets.transforms.loading import read_image
from mm_sop.datasets.unlabeled import UnlabeledImages
from mm_sop.utils.files import read_regular

FOOTNOTE = """
Medians over turns; every measurement of a list is a process of its own, and the checkouts take turns. *Peak* is the
resident memory at most above that before the dataset was built, *kept* what remains of it without mapped files, which
all processes share; *traced* is the peak of Python's own allocations (tracemalloc), from another process. *First key*
is the time from the built dataset to the first key and path of an epoch, *pickled* the size of the dataset for a
process that is not forked from this one, without what it maps. Files are empty; the page cache is warm.
"""

SHARDS = """
Medians over turns of reading, and of reading and decoding, all images once in one process in a shuffled order: of all
images, or with `window=2` of the sampler. *Cold*: the kernel was asked to drop the files from its page cache before
each turn; what lies below (the disk of a virtual machine) may keep them.
"""

# Runs in either checkout.
CHILD = """
import json, os, pickle, sys, time, tracemalloc
from multiprocessing import context
from multiprocessing.reduction import ForkingPickler
from mm_sop.datasets import SeededDataset, UnlabeledImages
from mm_sop.datasets.samplers import ResumableSampler

def memory():
    lines = dict(line.split(':') for line in open('/proc/self/status'))
    return {name: int(lines[name].split()[0]) * 1024 for name in ('VmHWM', 'VmRSS', 'RssAnon')}

class Spawning:
    def duplicate_for_child(self, descriptor):
        return descriptor

    DupFd = duplicate_for_child

folder, index, traced = sys.argv[1], sys.argv[2] or None, sys.argv[3] == 'True'
open('/proc/self/clear_refs', 'w').write('5')
before = memory()
if traced:
    tracemalloc.start()
started = time.perf_counter()
dataset = UnlabeledImages(folder, index_file=index)
built = time.perf_counter()
sampler = ResumableSampler(SeededDataset(dataset), seed=0)
path = dataset.get_data_info(next(iter(sampler)).index)['img_path']
first = time.perf_counter()
after = memory()
found = dict(images=len(dataset), seconds=built - started, first=first - built, path=path,
             peak=after['VmHWM'] - before['VmRSS'], kept=after['RssAnon'] - before['RssAnon'])
if traced:
    found['traced'] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
context.set_spawning_popen(Spawning())
found['pickled'] = len(ForkingPickler.dumps(dataset))
print(json.dumps(found))
"""


def measure_list(root: Path, folder: Path, index: Path | None, traced: bool = False) -> dict:
    command = [sys.executable, '-c', CHILD, str(folder), str(index or ''), str(traced)]
    output = subprocess.check_output(command, cwd=root, env=dict(os.environ, PYTHONPATH=str(root)), text=True)
    return json.loads(output.splitlines()[-1])


def make_files(folder: Path, count: int, per_folder: int) -> Path:
    for number in range(count):
        path = folder / f'{number // per_folder:05d}' / f'{number:09d}.jpg'
        if number % per_folder == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    return folder


def write_text_index(path: Path, folder: Path, count: int) -> Path:
    """The format that all versions read."""
    with path.open('w') as file:
        file.write(json.dumps(dict(folders=[str(folder)], extensions=UnlabeledImages(folder).extensions)) + '\n')
        for start in range(0, count, 10_000):
            file.write(''.join(f'{folder}/{i // 1000:05d}/{i:09d}.jpg\n' for i in range(start, start + 10_000)))
    return path


def measure_lists(args: argparse.Namespace, folder: Path) -> list[dict]:
    nested, flat = make_files(folder / 'nested', args.files, 1000), make_files(folder / 'flat', args.files, args.files)
    index = folder / 'index'
    checkouts = dict(after=ROOT, **(dict(before=Path(args.against).resolve()) if args.against else {}))
    cases = {f'list {args.files:,} files, 1,000 in each folder': (nested, None)}
    cases[f'list {args.files:,} files in one folder'] = (flat, None)
    cases[f'start with an index of {args.indexed:,}'] = (nested, index)
    rows = []
    for case, (data, file) in cases.items():
        # Each version has its own index; the new one converts the text when it meets it first.
        files = {name: file and file.with_suffix(f'.{name}') for name in checkouts}
        if file:
            for path in files.values():
                write_text_index(path, data, args.indexed)
            converted = measure_list(ROOT, data, files['after'])
            rows.append(dict(case=f'{case}, converting a text index', checkout='after', **converted))
        calls = {name: partial(measure_list, root, data, files[name]) for name, root in checkouts.items()}
        turns = [(timed.name, timed.result) for timed in take_turns(calls, args.repeats)]
        for name, root in checkouts.items():
            found = [result for each, result in turns if each == name]
            row = {key: statistics.median(each[key] for each in found) for key in found[0] if key != 'path'}
            traced = measure_list(root, data, files[name], traced=True)['traced']
            rows.append(dict(case=case, checkout=name, **row, traced=traced))
        paths = {result['path'] for _, result in turns}
        if len(paths) > 1:
            raise SystemExit(f'the checkouts have different first images: {paths}')
    return rows


def write_photos(folder: Path, count: int) -> Path:
    """JPEGs of about the size of ImageNet's."""
    import cv2

    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (94, 125, 3), np.uint8)
        path = folder / f'{number // 100:03d}' / f'{number:06d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC))
    return folder


def measure_reading(args: argparse.Namespace, folder: Path) -> list[dict]:
    loose = UnlabeledImages(write_photos(folder / 'photos', args.images))
    write_shards(folder / 'photos', folder / 'shards', size=20_000_000)
    started = time.perf_counter()
    packed = ShardedImages(folder / 'shards')
    scanned = time.perf_counter() - started
    size = sum(len(read_regular(path)) for path in loose.paths)
    orders = {
        'loose files': (loose, None),
        'shards': (packed, None),
        'shards, window=2': (packed, 2),
    }
    paths = {}
    for name, (dataset, window) in orders.items():
        sampler = ResumableSampler(SeededDataset(dataset), seed=0, **(dict(window=window) if window else {}))
        paths[name] = [dataset.get_data_info(key.index)['img_path'] for key in sampler]
    files = [*loose.paths, *map(str, packed.shards)]
    os.sync()
    rows = []
    for what, load, prepare in (
        ('read, warm', read_regular, lambda: None),
        ('read, cold', read_regular, partial(drop_caches, files)),
        ('read and decode, warm', read_image, lambda: None),
    ):
        calls = {name: partial(load_all, load, each) for name, each in paths.items()}
        turns = list(take_turns(calls, args.repeats, warm_up=1, prepare=prepare))
        for name in calls:
            seconds = [timed.seconds for timed in turns if timed.name == name]
            cpu = statistics.median(timed.cpu_seconds for timed in turns if timed.name == name)
            rate = args.images / statistics.median(seconds)
            rows.append(dict(what=what, source=name, images_per_second=rate, cpu_microseconds=1e6 * cpu / args.images))
            rows[-1].update(megabytes_per_second=size / 1e6 / statistics.median(seconds))
    rows.append(
        dict(what='scan headers', source=f'{len(packed.shards)} shards', images_per_second=args.images / scanned)
    )
    return rows


def drop_caches(files: list[str]) -> None:
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def load_all(load, paths: list[str]) -> None:
    for path in paths:
        load(path)


def make_page(report: dict) -> str:
    def mega(row: dict, key: str) -> str:
        return f'{row[key] / 1e6:,.1f}' if key in row else ''

    lists = markdown_table(
        ['task', 'code', 'seconds', 'first key, s', 'peak, MB', 'kept, MB', 'traced, MB', 'pickled, MB'],
        [
            [row['case'], row['checkout'], f'{row["seconds"]:.2f}', f'{row["first"]:.2f}']
            + [mega(row, key) for key in ('peak', 'kept', 'traced', 'pickled')]
            for row in report['lists']
        ],
    )
    reading = markdown_table(
        ['task', 'source', 'images/s', 'MB/s', 'CPU µs per image'],
        [
            [row['what'], row['source'], f'{row["images_per_second"]:,.0f}']
            + [f'{row[key]:,.0f}' if key in row else '' for key in ('megabytes_per_second', 'cpu_microseconds')]
            for row in report['reading']
        ],
    )
    head = f'# Data at scale\n\n{report["processor"]}, {report["repeats"]} turns.\n\n'
    return f'{head}{lists}\n{FOOTNOTE}\n{reading}\n{SHARDS}'


def main() -> None:
    out = str(ROOT / 'docs/benchmarks/data_at_scale.json')
    args = parse_options(
        __doc__, against='', files=100_000, indexed=10_000_000, images=2000, repeats=3, folder='', out=out
    )
    with tempfile.TemporaryDirectory(dir=args.folder or None) as folder:
        report = dict(processor=processor_name(), repeats=args.repeats, files=args.files, indexed=args.indexed)
        report['reading'] = measure_reading(args, Path(folder))
        report['lists'] = measure_lists(args, Path(folder))
    write_report(report, Path(args.out), make_page(report))


if __name__ == '__main__':
    main()
