"""What all benchmarks share: options, the machine in words, measuring in turns, and the files of a report."""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mm_sop.utils.files import write_atomically  # noqa: E402
from mm_sop.utils.tables import markdown_table  # noqa: E402, F401


def parse_options(description: str, **defaults: Any) -> argparse.Namespace:
    """Read options with the names and types of their defaults; those with a list take several values."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        kind = dict(nargs='+', type=type(default[0])) if isinstance(default, list) else dict(type=type(default))
        parser.add_argument(f'--{name.replace("_", "-")}', default=default, help='default %(default)s', **kind)
    return parser.parse_args()


class Timed(NamedTuple):
    """A call that was timed; ``cpu_seconds`` add up the threads of the process."""

    name: str
    turn: int
    result: Any
    seconds: float
    cpu_seconds: float


def take_turns(
    calls: dict[str, Callable[[], Any]], repeats: int, warm_up: int = 0, prepare: Callable[[], Any] = lambda: None
) -> Iterator[Timed]:
    """Time functions in turns, so that what else a machine does meets all of them; CUDA has finished at both ends.

    Args:
        calls: Functions by name.
        repeats: Turns of each.
        warm_up: Turns before them that are not counted.
        prepare: Called before each of the calls, outside of the time.
    """
    for turn in range(-warm_up, repeats):
        for name, call in calls.items():
            prepare()
            synchronize()
            started, cpu_started = time.perf_counter(), time.process_time()
            result = call()
            synchronize()
            timed = Timed(name, turn, result, time.perf_counter() - started, time.process_time() - cpu_started)
            if turn >= 0:
                yield timed
        print(f'\rturn {turn + 1}/{repeats}', end='' if turn + 1 < repeats else '\n', file=sys.stderr, flush=True)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def processor_name() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), platform.machine())


def write_report(report: dict, out: Path, page: str, image: bytes | None = None) -> None:
    """Write a JSON file, and a page and an image (PNG) beside it, and print the page."""
    write_atomically(out, json.dumps(report, indent=1) + '\n')
    write_atomically(out.with_suffix('.md'), page)
    if image:
        write_atomically(out.with_suffix('.png'), image)
    print(page)
