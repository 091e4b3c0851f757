"""Joins the k-NN results of runs that differ in their seed: python tools/benchmarks/compare_seeds.py OUT WORK_DIR..."""

import argparse
from functools import partial
from pathlib import Path

import torch
from composites_runs import format_gain
from harness import markdown_table, processor_name, write_report

from mm_sop.evaluation.classification.knn_records import (
    describe_score,
    format_summary,
    paired_gain,
    read_curve,
    read_run,
    summarize,
)
from mm_sop.report.charts import seeds_chart
from mm_sop.report.style import LIGHT, render


def parse_args():
    parser = argparse.ArgumentParser(description='Join the k-NN results of runs that differ in their seed.')
    parser.add_argument('out', help='file without ending: OUT.json, OUT.md and OUT.png are written')
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='finished runs')
    parser.add_argument(
        '--control', nargs=2, action='append', default=[], metavar=('NAME', 'WORK_DIR'), help='a run to set beside them'
    )
    parser.add_argument('--title', default='k-NN over seeds')
    parser.add_argument('--command', default='', help='command of the runs, for the table')
    return parser.parse_args()


def summarize_score(runs, score):
    """Mean and standard deviation over the seeds by features, and the gain over the other features."""
    summary = {
        features: summarize([run[features][score]['accuracy'] for run in runs])
        for features in runs[0]
        if score in runs[0][features]
    }
    rivals = [features for features in summary if features != 'trained']
    return dict(features=summary, gains={rival: paired_gain(runs, score, rival) for rival in rivals})


def format_page(record, image):
    environment, scores = record['environment'], record['scores']
    features = list(next(iter(scores.values()))['features'])
    titles = ['', *(name.replace('_', ' ') for name in features)]
    rows = [
        [describe_score(score), *(format_summary(summary['features'][name]) for name in features)]
        for score, summary in scores.items()
    ]
    parts = [f'# {record["title"]}', *([f'`{record["command"]}`'] if record['command'] else [])]
    parts += [
        f'{environment["seeds"]} seed(s), {record["iterations"][0]} iterations, {environment["cores"]} cores of '
        f'{environment["processor"]}, torch {environment["torch"]}. Accuracy in percent, mean ± std over the seeds.',
        markdown_table(titles, rows),
    ]
    if any(gain for summary in scores.values() for gain in summary['gains'].values()):
        rivals = [name for name in features if name != 'trained']
        rows = [
            [describe_score(score), *(format_gain(summary['gains'][rival]) for rival in rivals)]
            for score, summary in scores.items()
        ]
        parts += [
            'Gain of the trained network in points, ± one standard error of the paired difference (bootstrap over the '
            'objects shown, mean over the seeds):',
            markdown_table(['', *(f'over {name.replace("_", " ")}' for name in rivals)], rows),
        ]
    parts += [f'![Accuracy over the iterations]({image})', 'The composites are semi-synthetic: see docs/data.md.\n']
    return '\n\n'.join(parts)


def draw_curves(args, runs):
    """Curves of all runs and the levels of features that need no training."""
    kinds = {'trained': args.work_dirs, **{name: [work_dir] for name, work_dir in args.control}}
    curves, references = {}, {}
    for score in runs[0]['trained']:
        curves[score] = {kind: [read_curve(folder, score) for folder in folders] for kind, folders in kinds.items()}
        levels = {name.replace('_', ' '): runs[0].get(name) for name in ('raw_pixels', 'color_histogram')}
        references[score] = {name: scores[score]['accuracy'] for name, scores in levels.items() if scores}
    return render(partial(seeds_chart, curves, references), LIGHT, transparent=False)


def main():
    args = parse_args()
    runs, iterations = zip(*[read_run(work_dir) for work_dir in args.work_dirs], strict=True)
    for name, work_dir in args.control:
        control = read_run(work_dir)[0]['trained']
        for run in runs:
            run[name] = control
    environment = dict(
        seeds=len(runs), cores=torch.get_num_threads(), processor=processor_name(), torch=torch.__version__
    )
    summaries = {score: summarize_score(runs, score) for score in runs[0]['trained']}
    record = dict(title=args.title, command=args.command, iterations=iterations, environment=environment)
    record['scores'] = summaries
    write_report(
        record, Path(f'{args.out}.json'), format_page(record, f'{Path(args.out).name}.png'), draw_curves(args, runs)
    )


if __name__ == '__main__':
    main()
