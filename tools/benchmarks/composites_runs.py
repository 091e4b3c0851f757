"""Shared code of the benchmarks that compare training runs on the photo composites."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import harness
import torch
from harness import ROOT, markdown_table, processor_name

from mm_sop.evaluation.classification.knn_records import (
    describe_score,
    format_summary,
    paired_gain,
    read_run,
    summarize,
)
from mm_sop.report.charts import comparison_chart
from mm_sop.report.style import LIGHT, render
from mm_sop.utils.files import write_atomically

CONDITIONS = """\
Every run is one process of one thread with the whole batch of 128: BatchNorm sees batches of one size in all of them.
Learning rate and augmentation are those of the config. 20-nearest-neighbor accuracy in percent of the teacher, or of
the only network, after the last step; mean ± std over the seeds. *Seen* images show training objects on new
photos, *test* images new objects on new photos. Processor time is of training with data loading and evaluation: the
least of the seeds, as other work on the machine makes the others longer, and in brackets mean ± std.
"""


class Variant(NamedTuple):
    """A kind of run."""

    config: str  # Below ``configs``
    options: tuple[str, ...] = ()  # Changes to the config, ``key=value``
    base: str | None = None  # Variant with which it is compared seed by seed
    # Gives further options, made out of the folder and the config of a finished run of the base.
    prepare: Callable[[Path, Path], list[str]] | None = None
    # Checkpoint from which it starts, or ``'none'``; None where the config has no place for one.
    pretrained: str | None = None


class Runs:
    """Runs of several variants with several seeds, a few at a time; finished ones are kept.

    Args:
        variants: By name.
        args: With the attributes that :func:`add_run_arguments` gives.
        options: Changes to the configs of all.
    """

    def __init__(self, variants: dict[str, Variant], args: argparse.Namespace, options: Sequence[str] = ()) -> None:
        self.variants = variants
        self.args = args
        self.options = options

    def train(self) -> None:
        """Train everything, what needs another variant's run last."""
        for waits in (False, True):
            names = [name for name, variant in self.variants.items() if bool(variant.prepare) == waits]
            jobs = [(name, seed) for seed in self.args.seeds for name in names]
            with ThreadPoolExecutor(self.args.jobs) as pool:
                list(pool.map(lambda job: self._train_once(*job), jobs))

    def folder(self, name: str, seed: int) -> Path:
        slug = ''.join(letter if letter.isalnum() or letter in '.-' else '_' for letter in name.lower())
        return self.args.work_dir / f'{slug}_s{seed}'

    def _train_once(self, name: str, seed: int) -> None:
        variant, folder = self.variants[name], self.folder(name, seed)
        options = [*self.options, *variant.options]
        settings = [str(variant.config), *options, *([variant.pretrained] if variant.pretrained else [])]
        if (folder / 'finished.json').is_file():
            # Runs of earlier versions have noted no settings.
            known = self._finished(name, seed).get('settings', settings)
            if known != settings:
                raise SystemExit(
                    f'{folder} was trained with {shlex.join(known)}, now it would be {shlex.join(settings)}: '
                    'remove it or choose another --work-dir'
                )
            return
        # Restarted: the time of a resumed run would lack what the interrupted one took.
        shutil.rmtree(folder, ignore_errors=True)
        if variant.prepare:
            base = ROOT / 'configs' / self.variants[variant.base].config
            options += variant.prepare(self.folder(variant.base, seed), base)
        command = [sys.executable, ROOT / 'tools/train.py', ROOT / 'configs' / variant.config, '--seed', seed]
        command += ['--work-dir', folder, *(['--amp'] if self.args.amp else [])]
        command += ['--pretrained', variant.pretrained] if variant.pretrained else []
        command += ['--cfg-options', *options] if options else []
        begin = time.monotonic()
        cpu_seconds = run_command(command, folder / 'output.txt')
        record = dict(cpu_seconds=cpu_seconds, seconds=time.monotonic() - begin, settings=settings)
        write_atomically(folder / 'finished.json', json.dumps(record))
        print(f'{name}, seed {seed}: {cpu_seconds / 60:.1f} processor minutes', flush=True)

    def _finished(self, name: str, seed: int) -> dict:
        return json.loads((self.folder(name, seed) / 'finished.json').read_text())

    def cpu_minutes(self, name: str) -> dict:
        """Processor minutes of a variant's runs."""
        return summarize([self._finished(name, seed)['cpu_seconds'] / 60 for seed in self.args.seeds])

    def provenance(self, details: str) -> dict[str, str]:
        """Command and environment of a report."""
        return dict(
            command=shlex.join(['python', *sys.argv]),
            environment=f'{len(self.args.seeds)} seed(s), {details}, {self.args.jobs} runs at a time on '
            f'{os.cpu_count()} cores ({processor_name()}), torch {torch.__version__}.',
        )


class Comparison(Runs):
    """Pretraining runs, compared by k-NN.

    Args:
        variants: By name.
        args: With the attributes that :func:`parse_args` gives.
    """

    def __init__(self, variants: dict[str, Variant], args: argparse.Namespace) -> None:
        options = [f'train_cfg.max_epochs={args.epochs}', 'train_dataloader.batch_size=128']
        super().__init__({name: variants[name] for name in args.names}, args, options)

    def report(self) -> dict:
        """Accuracies, times and gains."""
        seeds, results = self.args.seeds, {}
        runs = {name: [read_run(self.folder(name, seed))[0] for seed in seeds] for name in self.variants}
        for name, variant in self.variants.items():
            scores = {
                score: [run['trained'][score]['accuracy'] for run in runs[name]] for score in runs[name][0]['trained']
            }
            results[name] = dict(
                config=variant.config,
                options=variant.options,
                cpu_minutes=self.cpu_minutes(name),
                accuracy={score: summarize(values) for score, values in scores.items()},
            )
            if variant.base in runs:
                pairs = [
                    dict(base=base['trained'], trained=run['trained'])
                    for run, base in zip(runs[name], runs[variant.base], strict=True)
                ]
                results[name]['gain_over_base'] = {score: paired_gain(pairs, score, 'base') for score in scores}
        titles = {'raw_pixels': 'raw pixels', 'color_histogram': 'color histogram', 'untrained': 'untrained'}
        first = next(iter(runs.values()))
        references = {
            title: {score: summarize([run[name][score]['accuracy'] for run in first]) for score in first[0]['trained']}
            for name, title in titles.items()
            if name in first[0]
        }
        return dict(self.provenance(f'{self.args.epochs} epochs'), results=results, references=references)


def run_command(command: list, log: Path) -> float:
    """Run a command that writes into a log file; return the processor seconds of it and its children."""
    command = [str(part) for part in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    with log.open('a') as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f'{shlex.join(command)} failed with code {process.returncode}, see {log}')
    return usage.ru_utime + usage.ru_stime


def format_page(report: dict, image: str, title: str, explanation: str, appendix: str) -> str:
    results = report['results']
    scores = list(next(iter(results.values()))['accuracy'])
    titles = ['', *map(describe_score, scores)]
    rows = [
        [name, *(format_summary(row['accuracy'][score]) for score in scores), format_minutes(row['cpu_minutes'])]
        for name, row in results.items()
    ]
    for name, summaries in report['references'].items():
        rows.append([f'*{name}*', *(format_summary(summaries[score]) for score in scores), ''])
    parts = [f'# {title}', f'`{report["command"]}`', report['environment'], CONDITIONS + explanation.rstrip('\n')]
    parts += [markdown_table([*titles, 'processor minutes'], rows), f'![Accuracies]({image})']
    gains = {name: row['gain_over_base'] for name, row in results.items() if 'gain_over_base' in row}
    if gains:
        rows = [[name, *(format_gain(row[score]) for score in scores)] for name, row in gains.items()]
        parts.append('Gain in points, ± one standard error (paired, bootstrap over the objects shown):')
        parts.append(markdown_table(titles, rows))
    return '\n\n'.join([*parts, appendix + 'The composites are semi-synthetic: see docs/data.md.\n'])


def format_minutes(minutes: dict) -> str:
    """The least of several processor times, then mean and standard deviation where there is one."""
    std = '' if minutes['deviation'] is None else f' ({minutes["mean"]:.1f} ± {minutes["deviation"]:.1f})'
    return f'{min(minutes["values"]):.1f}{std}'


def format_gain(gain: dict | None) -> str:
    """A paired gain in points with its standard error; empty for None."""
    return '' if gain is None else f'{100 * gain["gain"]:+.1f} ± {100 * gain["standard_error"]:.1f}'


def write_report(report: dict, out: Path, title: str, explanation: str, appendix: str = '') -> None:
    """Write the report of a :class:`Comparison`, with a page and an image beside it, and print the page."""
    accuracies = {name: row['accuracy'] for name, row in report['results'].items()}
    page = format_page(report, out.with_suffix('.png').name, title, explanation, appendix)
    chart = partial(comparison_chart, accuracies, report['references'])
    harness.write_report(report, out, page, render(chart, LIGHT, transparent=False))


def parse_args(variants: dict[str, Variant], name: str, description: str) -> argparse.Namespace:
    """Read the arguments of a comparison of variants; ``name`` is that of the results' files and folder."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--names', nargs='+', choices=variants, default=list(variants), metavar='NAME')
    parser.add_argument('--epochs', type=int, default=2)
    add_run_arguments(parser, name, os.cpu_count() or 1)
    args = parser.parse_args()
    missing = {variants[name].base for name in args.names if variants[name].prepare} - set(args.names)
    if missing:
        parser.error(f'some variants need runs of others: add {", ".join(sorted(missing))} to --names')
    return args


def add_run_arguments(parser: argparse.ArgumentParser, name: str, jobs: int | None = None) -> None:
    """Add what all benchmarks of several runs take; ``name`` is that of the results' files and folder."""
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=jobs, help='runs at a time')
    parser.add_argument('--amp', action='store_true', help='bfloat16')
    parser.add_argument('--work-dir', type=absolute_path, default=absolute_path(f'work_dirs/{name}'))
    parser.add_argument('--out', type=Path, default=ROOT / f'docs/benchmarks/{name}.json')


def absolute_path(path: str) -> Path:
    """A path that stays right in the folder in which the runs are started."""
    return Path(path).resolve()
