"""What a pretrained encoder is worth downstream: detection and segmentation of composites, against random weights.

``python tools/benchmarks/downstream_on_composites.py SOP=a.pth ReSA=b.pth CO=c.pth`` trains every task from random
weights and from each checkpoint, with the same schedule and seeds. Checkpoints are those of the ResNet-18 of
``configs/sop/r18_composites.py``. Interrupted, the same command goes on: finished runs are kept. It writes a JSON file,
a readable page and an image of the learning curves.
"""

import argparse
import os
from functools import partial
from pathlib import Path
from statistics import stdev
from typing import NamedTuple

import harness
import numpy as np
from composites_runs import Runs, Variant, absolute_path, add_run_arguments
from harness import markdown_table

from mm_sop.evaluation.classification.knn_records import summarize
from mm_sop.report.charts import spread_chart
from mm_sop.report.run_log import read_scalars
from mm_sop.report.style import LIGHT, render
from mm_sop.utils.files import hash_file

SCRATCH = 'scratch'
CONDITIONS = """\
All runs of a task differ in nothing but the weights from which the encoder starts, and in their seed. Figures are those
after the last step, in percent: mean ± std over the seeds. AP is COCO's, of boxes and of masks; mIoU counts the
background as a class. Validation scenes show objects and photos that are in no training scene. Gains are over random
weights with the same seed, ± one standard error of their mean over the seeds. Each checkpoint is of one pretraining
run: that randomness is not part of the std.
"""


class Task(NamedTuple):
    """A downstream task."""

    config: str  # Below ``configs``
    scores: dict[str, float]  # Factors that make percent of the logged scores, by name


TASKS = {
    'detection': Task('detection/mask-rcnn_r18_fpn_composites.py', {'coco/bbox_mAP': 100.0, 'coco/segm_mAP': 100.0}),
    'segmentation-linear': Task('segmentation/segmentation_linear_r18_composites.py', {'mIoU': 1.0}),
    'segmentation-fpn': Task('segmentation/segmentation_fpn_r18_composites.py', {'mIoU': 1.0}),
}
TITLES = {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP', 'mIoU': 'mIoU'}

# Training scenes, epochs, those between evaluations, processes that load data, and runs at a time. With `small`, a
# detector takes about 4 minutes of a core; `large` is for a GPU.
PRESETS = {
    'small': dict(scenes=1000, epochs=4, interval=1, workers=1, jobs=os.cpu_count() or 1),
    'large': dict(scenes=2000, epochs=36, interval=3, workers=4, jobs=1),
}


class Downstream(Runs):
    """Runs of every task from every initialization."""

    def __init__(self, args: argparse.Namespace) -> None:
        preset = PRESETS[args.preset]
        options = [
            f'train_cfg.max_epochs={args.epochs or preset["epochs"]}',
            f'train_cfg.val_interval={preset["interval"]}',
            f'train_dataloader.dataset.dataset.indices={preset["scenes"]}',
            f'train_dataloader.num_workers={preset["workers"]}',
            # Scores are logged beside iterations, not epochs.
            'default_hooks.logger.log_metric_by_epoch=False',
        ]
        variants = {
            f'{task} {name}': Variant(TASKS[task].config, pretrained=str(checkpoint))
            for task in args.tasks
            for name, checkpoint in args.checkpoints.items()
        }
        super().__init__(variants, args, options)

    def report(self) -> dict:
        """Final scores, gains over random weights and learning curves."""
        checkpoints, results = self.args.checkpoints, {}
        for task in self.args.tasks:
            minutes = {name: self.cpu_minutes(f'{task} {name}') for name in checkpoints}
            scores = {score: self._compare(task, score) for score in TASKS[task].scores}
            results[task] = dict(config=TASKS[task].config, cpu_minutes=minutes, scores=scores)
        files = {name: path for name, path in checkpoints.items() if name != SCRATCH}
        return dict(
            self.provenance(f'preset {self.args.preset}'),
            options=self.options,
            checkpoints={name: dict(file=path.name, sha256=hash_file(path)) for name, path in files.items()},
            results=results,
        )

    def _compare(self, task: str, score: str) -> dict[str, dict]:
        """Results by initialization, with the curve (iterations and percents) of every seed."""
        factor, curves = TASKS[task].scores[score], {}
        for name in self.args.checkpoints:
            logs = [read_scalars(self.folder(f'{task} {name}', seed))[score] for seed in self.args.seeds]
            curves[name] = [(steps, [factor * value for value in values]) for steps, values in logs]
        last = {name: [values[-1] for _, values in runs] for name, runs in curves.items()}
        return {
            name: dict(summarize(last[name]), gain=mean_gain(last[name], last[SCRATCH]), curves=curves[name])
            for name in curves
        }


def mean_gain(values: list[float], base: list[float]) -> dict:
    """Mean difference seed by seed, and its standard error (None for a single seed)."""
    differences = np.subtract(values, base).tolist()
    error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
    return dict(mean=float(np.mean(differences)), standard_error=error)


def format_number(mean: float, spread: float | None, sign: str = '') -> str:
    """A score with its standard deviation or error, where there is one."""
    # Adding zero turns -0.0 into 0.0.
    return f'{round(mean, 1) + 0.0:{sign}.1f}' + ('' if spread is None else f' ± {spread:.1f}')


def format_page(report: dict, image: str) -> str:
    parts = ['# Downstream of pretraining on photo composites', f'`{report["command"]}`', report['environment']]
    parts.append(CONDITIONS.rstrip('\n'))
    for task, result in report['results'].items():
        rows = []
        for name, minutes in result['cpu_minutes'].items():
            cells = [name]
            for row in (scores[name] for scores in result['scores'].values()):
                gain = row['gain']
                cells.append(format_number(row['mean'], row['deviation']))
                cells.append('' if name == SCRATCH else format_number(gain['mean'], gain['standard_error'], '+'))
            rows.append([*cells, f'{minutes["mean"]:.1f}'])
        titles = [title for score in result['scores'] for title in (TITLES[score], 'gain')]
        table = markdown_table(['start from', *titles, 'processor minutes'], rows)
        parts += [f'## {task}', f'`configs/{result["config"]}`', table]
    parts += [f'![Learning curves]({image})', 'Lines are means over the seeds, bands one std.']
    return '\n\n'.join([*parts, 'The composites are semi-synthetic: see docs/data.md.\n'])


def write_report(report: dict, out: Path) -> None:
    """Write a JSON file, a page and an image, and print the page."""
    curves = {
        f'{task}: {TITLES[score]}': {name: row['curves'] for name, row in rows.items()}
        for task, result in report['results'].items()
        for score, rows in result['scores'].items()
    }
    page = format_page(report, out.with_suffix('.png').name)
    chart = render(partial(spread_chart, curves, '%', columns=2), LIGHT, transparent=False)
    harness.write_report(report, out, page, chart)


def parse_checkpoint(text: str) -> tuple[str, Path]:
    """NAME=CHECKPOINT."""
    name, _, path = text.partition('=')
    if not name or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f'expected NAME=CHECKPOINT with an existing file, got {text!r}')
    if name == SCRATCH:
        raise argparse.ArgumentTypeError(f'{SCRATCH!r} are the runs without a checkpoint: choose another name')
    return name, absolute_path(path)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoints', nargs='+', type=parse_checkpoint, metavar='NAME=CHECKPOINT')
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    parser.add_argument('--preset', choices=PRESETS, default='small', help='large is for a GPU')
    parser.add_argument('--epochs', type=int, help='default that of the preset')
    add_run_arguments(parser, 'downstream_on_composites')
    args = parser.parse_args()
    args.jobs = args.jobs or PRESETS[args.preset]['jobs']
    args.checkpoints = {SCRATCH: Path('none'), **dict(args.checkpoints)}
    return args


if __name__ == '__main__':
    arguments = parse_args()
    downstream = Downstream(arguments)
    downstream.train()
    write_report(downstream.report(), arguments.out)
