"""Joins the k-NN results of runs that differ in their seed: python tools/benchmarks/compare_seeds.py OUT WORK_DIR..."""

import argparse
import json
import platform
from pathlib import Path

import torch

from mm_sop.engine.atomic import write_atomically
from mm_sop.evaluation.records import describe_score
from mm_sop.evaluation.seeds import format_summary, read_run, summarize


def parse_args():
    parser = argparse.ArgumentParser(description='Join the k-NN results of runs that differ in their seed.')
    parser.add_argument('out', help='file without ending: OUT.json and OUT.md are written')
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='finished runs')
    parser.add_argument('--title', default='k-NN over seeds')
    parser.add_argument('--command', default='', help='command of the runs, for the table')
    return parser.parse_args()


def summarize_score(runs, score):
    """Mean and deviation over the seeds by features, and every run's gain in standard errors of the difference."""
    summary = {}
    for features in runs[0]:
        values = [run[features][score]['accuracy'] for run in runs if score in run[features]]
        summary[features] = summarize(values)
    pairs = [(run['untrained'][score], run['trained'][score]) for run in runs]
    summary['gain_in_standard_errors'] = [
        (after['accuracy'] - before['accuracy']) / (before['standard_error'] ** 2 + after['standard_error'] ** 2) ** 0.5
        for before, after in pairs
    ]
    return summary


def format_table(summaries, title, command, iterations, environment):
    features = [name for name in next(iter(summaries.values())) if name != 'gain_in_standard_errors']
    lines = [f'# {title}', '', *([f'`{command}`', ''] if command else [])]
    lines += [
        f'{environment["seeds"]} seed(s), {iterations} iterations, {environment["cores"]} cores of '
        f'{environment["processor"]}, torch {environment["torch"]}. '
        'Accuracy in percent, mean ± deviation over the seeds.',
        '',
        f'| | {" | ".join(name.replace("_", " ") for name in features)} | gain of each seed in standard errors |',
        f'| --- |{" ---: |" * (len(features) + 1)}',
    ]
    for score, summary in summaries.items():
        cells = [format_summary(summary[name]) for name in features]
        gains = ', '.join(f'{gain:+.1f}' for gain in summary['gain_in_standard_errors'])
        lines.append(f'| {describe_score(score)} | {" | ".join(cells)} | {gains} |')
    lines += [
        '',
        'Standard errors of a run are over objects (bootstrap) where the queries show objects that are not in the '
        'bank, else over pictures (binomial). The composites are semi-synthetic: see docs/data.md.',
    ]
    return '\n'.join(lines) + '\n'


def processor_name():
    info = Path('/proc/cpuinfo')
    names = [line.split(':')[1].strip() for line in info.read_text().splitlines() if line.startswith('model name')]
    return names[0] if names else platform.processor()


def main():
    args = parse_args()
    runs, iterations = zip(*[read_run(work_dir) for work_dir in args.work_dirs], strict=True)
    environment = dict(
        seeds=len(runs), cores=torch.get_num_threads(), processor=processor_name(), torch=torch.__version__
    )
    summaries = {score: summarize_score(runs, score) for score in runs[0]['trained']}
    table = format_table(summaries, args.title, args.command, iterations[0], environment)
    record = dict(title=args.title, command=args.command, iterations=iterations, environment=environment)
    write_atomically(Path(f'{args.out}.json'), json.dumps(dict(record, scores=summaries), indent=1) + '\n')
    write_atomically(Path(f'{args.out}.md'), table)
    print(table)


if __name__ == '__main__':
    main()
