"""Time training steps of this checkout and of another one, in turns of two processes on images of noise.

``python tools/benchmarks/step_against.py configs/sop/quickstart.py ../other-checkout``
"""

import argparse
import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from harness import ROOT, markdown_table, processor_name, take_turns, write_report

FOOTNOTE = """\
Medians over turns (quartiles in brackets). Each checkout runs in a process of its own, and the processes take turns; a
step is forward, backward, optimizer and teacher update, on one batch of noise. CPU time adds up the threads. The ratio
is that of the CPU times of neighboring turns.
"""


class Checkout:
    """A process that makes training steps of a config with the code of a checkout."""

    def __init__(self, root: Path, config: str) -> None:
        self.commit = subprocess.check_output(['git', 'rev-parse', '--short', 'HEAD'], cwd=root, text=True).strip()
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name('step_server.py'), config],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def steps(self, iterations: int) -> dict:
        """Seconds and CPU seconds of a step, and the images of a batch."""
        self.process.stdin.write(f'{iterations}\n')
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"seconds"'):
                return json.loads(line)
        raise SystemExit('a checkout has failed, see above')


def summarize(commit: str, measured: list[dict], first: list[dict]) -> dict:
    milliseconds = [1000 * row['seconds'] for row in measured]
    ratios = [before['cpu_seconds'] / after['cpu_seconds'] for before, after in zip(first, measured, strict=True)]
    return dict(
        commit=commit,
        milliseconds=dict(median=statistics.median(milliseconds), quartiles=statistics.quantiles(milliseconds)[::2]),
        cpu_milliseconds=1000 * statistics.median(row['cpu_seconds'] for row in measured),
        cpu_ratio=dict(median=statistics.median(ratios), quartiles=statistics.quantiles(ratios)[::2]),
    )


def spread(values: dict, digits: int) -> str:
    low, high = values['quartiles']
    return f'{values["median"]:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})'


def format_page(report: dict) -> str:
    rows = [
        [
            name,
            row['commit'],
            spread(row['milliseconds'], 0),
            f'{row["cpu_milliseconds"]:.0f}',
            spread(row['cpu_ratio'], 2),
        ]
        for name, row in report['results'].items()
    ]
    titles = ['checkout', 'commit', 'ms of a step', 'CPU ms', 'times as fast as the other']
    return (
        f'# Training step of `{report["config"]}`\n\n{report["environment"]}\n\n'
        f'Batch {report["batch_size"]}, {report["turns"]} turns of {report["iterations"]} steps.\n\n'
        f'{markdown_table(titles, rows, ["left"] * 2 + ["right"] * 3)}\n\n{FOOTNOTE}\nMade by `{report["command"]}`.\n'
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Time training steps of this checkout and of another one.')
    parser.add_argument('config', help='path that both checkouts have')
    parser.add_argument('other', type=Path, help='root of the other checkout')
    parser.add_argument('--turns', type=int, default=15, help='of each checkout, after one that is not counted')
    parser.add_argument('--iterations', type=int, default=4, help='steps in a turn')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/benchmarks/step_against.json')
    args = parser.parse_args()
    if args.turns < 2:
        parser.error('--turns must be at least 2')
    for root in (ROOT, args.other):
        if not (root / args.config).is_file():
            parser.error(f'{root} has no {args.config}')
    return args


def main() -> None:
    args = parse_args()
    checkouts = dict(other=Checkout(args.other.resolve(), args.config), this=Checkout(ROOT, args.config))
    calls = {name: partial(checkout.steps, args.iterations) for name, checkout in checkouts.items()}
    measured = {name: [] for name in checkouts}
    for timed in take_turns(calls, args.turns, warm_up=1):
        measured[timed.name].append(timed.result)
    for checkout in checkouts.values():
        checkout.process.stdin.close()
        checkout.process.wait()
    report = dict(
        config=args.config,
        command=f'python tools/benchmarks/step_against.py {args.config} OTHER',
        environment=f'{processor_name()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} CPU '
        f'threads, torch {torch.__version__}.',
        batch_size=measured['this'][0]['batch_size'],
        turns=args.turns,
        iterations=args.iterations,
        results={name: summarize(checkouts[name].commit, rows, measured['other']) for name, rows in measured.items()},
    )
    write_report(report, args.out, format_page(report))


if __name__ == '__main__':
    main()
