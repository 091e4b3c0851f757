"""Shared code of the benchmarks that compare training runs on the photo composites."""

import argparse
import json
import os
import platform
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

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from mm_sop.evaluation.classification.knn_records import (  # noqa: E402
    describe_score,
    format_summary,
    paired_gain,
    read_run,
    summarize,
)
from mm_sop.report.charts import comparison_chart  # noqa: E402
from mm_sop.report.style import LIGHT, Theme, render  # noqa: E402
from mm_sop.utils.files import write_atomically  # noqa: E402

CONDITIONS = """\
Every run is one process of one thread with the whole batch of 128: BatchNorm sees batches of one size in all of them.
Learning rate and augmentation are those of the config. 20-nearest-neighbor accuracy in percent of the teacher, or of
the only network, after the last step; mean ± std over the seeds. *Seen* images show training objects on new
photos, *test* images new objects on new photos. Processor time is of training with data loading and evaluation: the
least of the seeds, as other work on the machine makes the others longer, and in brackets mean ± std.
"""


class Variant(NamedTuple):
    """A kind of run.

    Attributes:
        config: Below ``configs``.
        options: Changes to the config, ``key=value``.
        base: Variant with which it is compared seed by seed.
        prepare: Makes what the run needs out of a finished run of the base; called with its folder and its config, it
            gives further options.
        pretrained: Checkpoint from which it starts, or ``'none'``; None where the config has no place for one.
    """

    config: str
    options: tuple[str, ...] = ()
    base: str | None = None
    prepare: Callable[[Path, Path], list[str]] | None = None
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
        """Folder of a run."""
        slug = ''.join(letter if letter.isalnum() or letter in '.-' else '_' for letter in name.lower())
        return self.args.work_dir / f'{slug}_s{seed}'

    def _train_once(self, name: str, seed: int) -> None:
        variant, folder = self.variants[name], self.folder(name, seed)
        options = [*self.options, *variant.options]
        settings = [str(variant.config), *options, *([variant.pretrained] if variant.pretrained else [])]
        if (folder / 'finished.json').is_file():
            self._check_settings(name, seed, settings)
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

    def _check_settings(self, name: str, seed: int, settings: list[str]) -> None:
        """Refuse results of other settings; runs of earlier versions have noted none."""
        known = self._finished(name, seed).get('settings', settings)
        if known != settings:
            raise SystemExit(
                f'{self.folder(name, seed)} was trained with {shlex.join(known)}, now it would be '
                f'{shlex.join(settings)}: remove it or choose another --work-dir'
            )

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
        seeds = self.args.seeds
        runs = {name: [read_run(self.folder(name, seed))[0] for seed in seeds] for name in self.variants}
        return dict(
            self.provenance(f'{self.args.epochs} epochs'),
            results={name: self._result(name, runs) for name in self.variants},
            references=_references(next(iter(runs.values()))),
        )

    def _result(self, name: str, runs: dict[str, list[dict]]) -> dict:
        scores = runs[name][0]['trained']
        variant = self.variants[name]
        result = dict(
            config=variant.config,
            options=variant.options,
            cpu_minutes=self.cpu_minutes(name),
            accuracy={score: summarize([run['trained'][score]['accuracy'] for run in runs[name]]) for score in scores},
        )
        if variant.base in runs:
            pairs = [
                dict(base=base['trained'], trained=run['trained'])
                for run, base in zip(runs[name], runs[variant.base], strict=True)
            ]
            result['gain_over_base'] = {score: paired_gain(pairs, score, 'base') for score in scores}
        return result


def _references(runs: list[dict]) -> dict[str, dict]:
    """Accuracies without training, and of the untrained networks of a variant."""
    names = {'raw_pixels': 'raw pixels', 'color_histogram': 'color histogram', 'untrained': 'untrained'}
    return {
        title: {score: summarize([run[name][score]['accuracy'] for run in runs]) for score in runs[0]['trained']}
        for name, title in names.items()
        if name in runs[0]
    }


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


def processor_name() -> str:
    """The processor in words."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), platform.machine())


def format_page(report: dict, image: str, title: str, explanation: str, appendix: str) -> str:
    """A readable page."""
    results = report['results']
    scores = list(next(iter(results.values()))['accuracy'])
    head = [f'| | {" | ".join(map(describe_score, scores))} |', f'| --- |{" ---: |" * len(scores)}']
    lines = [f'# {title}', '', f'`{report["command"]}`', '', report['environment'], '', CONDITIONS + explanation]
    lines += [f'{head[0]} processor minutes |', f'{head[1]} ---: |']
    for name, row in results.items():
        cells = [format_summary(row['accuracy'][score]) for score in scores]
        lines.append(f'| {name} | {" | ".join(cells)} | {format_minutes(row["cpu_minutes"])} |')
    for name, summaries in report['references'].items():
        lines.append(f'| *{name}* | {" | ".join(format_summary(summaries[score]) for score in scores)} | |')
    lines += ['', f'![Accuracies]({image})']
    gains = {name: row['gain_over_base'] for name, row in results.items() if 'gain_over_base' in row}
    if gains:
        lines += ['', 'Gain in points, ± one standard error (paired, bootstrap over the objects shown):', '', *head]
        for name, row in gains.items():
            lines.append(f'| {name} | {" | ".join(format_gain(row[score]) for score in scores)} |')
    return '\n'.join([*lines, '', appendix + 'The composites are semi-synthetic: see docs/data.md.', ''])


def format_minutes(minutes: dict) -> str:
    """The least of several processor times, then mean and standard deviation where there is one."""
    std = '' if minutes['deviation'] is None else f' ({minutes["mean"]:.1f} ± {minutes["deviation"]:.1f})'
    return f'{min(minutes["values"]):.1f}{std}'


def format_gain(gain: dict | None) -> str:
    """A paired gain in points with its standard error; empty for None."""
    return '' if gain is None else f'{100 * gain["gain"]:+.1f} ± {100 * gain["standard_error"]:.1f}'


def write_report(report: dict, out: Path, title: str, explanation: str, appendix: str = '') -> None:
    """Write a JSON file, a page and an image, and print the page.

    Args:
        report: That of a :class:`Comparison`.
        out: The JSON file; the others lie beside it.
        title: Title of the page.
        explanation: Lines before the tables.
        appendix: Lines behind them.
    """
    accuracies = {name: row['accuracy'] for name, row in report['results'].items()}
    page = format_page(report, out.with_suffix('.png').name, title, explanation, appendix)
    write_files(report, out, page, partial(comparison_chart, accuracies, report['references']))


def write_files(report: dict, out: Path, page: str, draw: Callable[[Theme], Figure]) -> None:
    """Write a report, its page and its chart beside each other, and print the page."""
    write_atomically(out, json.dumps(report, indent=1) + '\n')
    write_atomically(out.with_suffix('.md'), page)
    write_atomically(out.with_suffix('.png'), render(draw, LIGHT, transparent=False))
    print(page)


def parse_args(variants: dict[str, Variant], name: str, description: str) -> argparse.Namespace:
    """Read the arguments of a comparison.

    Args:
        variants: All of them, by name.
        name: Of the results' files and folder.
        description: Of the script.
    """
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
    """Add what all benchmarks of several runs take.

    Args:
        parser: The parser.
        name: Of the results' files and folder.
        jobs: Runs at a time, unless told otherwise.
    """
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=jobs, help='runs at a time')
    parser.add_argument('--amp', action='store_true', help='bfloat16')
    parser.add_argument('--work-dir', type=absolute_path, default=absolute_path(f'work_dirs/{name}'))
    parser.add_argument('--out', type=Path, default=ROOT / f'docs/benchmarks/{name}.json')


def absolute_path(path: str) -> Path:
    """A path that stays right in the folder in which the runs are started."""
    return Path(path).resolve()
