"""k-NN results of a run, and of several runs that differ in their seed."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from mm_sop.evaluation.results import Records
from mm_sop.evaluation.standard_errors import clustered_standard_error
from mm_sop.utils.tables import markdown_table

TITLES = dict(raw_pixels='raw 16 x 16 pixels', color_histogram='color histogram', supervised='supervised ceiling')


class KNNRecords(Records):
    """k-NN results of a run in ``knn.json``, with ``knn.md`` beside it.

    A record has ``network`` (``'teacher'``, ``'raw_pixels'``, ...), ``iter`` and ``epoch`` (None without training),
    ``seconds`` and ``scores`` by name, and in runs ``iters_per_epoch``, which ``iter`` refers to.
    """

    def __init__(self, work_dir: str | Path) -> None:
        super().__init__(Path(work_dir, 'knn.json'))

    def forget_after(self, iteration: int, iters_per_epoch: int) -> None:
        """Drop the results of an earlier run beyond the iteration at which this one starts; at 0 all of them.

        Records of a run with another epoch length are renumbered, like the iteration of a resumed run.
        """
        for record in self.records:
            old_length = record.get('iters_per_epoch', iters_per_epoch)
            if record['iter'] is not None and old_length != iters_per_epoch:
                record.update(iter=record['iter'] * iters_per_epoch // old_length, iters_per_epoch=iters_per_epoch)
        earlier = [record for record in self.records if record['iter'] is None or record['iter'] <= iteration]
        self.records = earlier if iteration > 0 else []

    def find(self, network: str, iteration: int | None) -> dict | None:
        """The record of a network at an iteration, or None."""
        matches = (each for each in self.records if (each['network'], each['iter']) == (network, iteration))
        return next(matches, None)

    def add(self, record: dict, write: bool = True) -> None:
        """Add a record, in place of an older one of the same network and iteration.

        Only one process of a run should write the files.
        """
        older = self.find(record['network'], record['iter'])
        if older is not None:
            self.records.remove(older)
        self.records.append(record)
        if write:
            self.write()

    def format(self) -> str:
        """Format the records by :func:`format_table`."""
        return format_table(self.records)


def format_table(records: list[dict]) -> str:
    """Format records of :class:`KNNRecords` as a Markdown table, in percent with standard errors."""
    names = list(dict.fromkeys(name for record in records for name in record['scores']))
    rows = []
    for record in sorted(records, key=lambda record: (record['iter'] is not None, record['iter'] or 0)):
        cells = [format_score(record['scores'].get(name)) for name in names]
        rows.append([describe(record), '' if record['iter'] is None else str(record['iter']), *cells])
    table = markdown_table(['features', 'iteration', *map(describe_score, names)], rows)
    return (
        f'# k-nearest-neighbor accuracy in percent\n\n{table}\n\n± one standard error: over objects (bootstrap) if '
        'the queries show objects that are not in the bank, else over images (binomial).\n'
    )


def describe(record: dict) -> str:
    """Readable name of the features of a record."""
    if record['network'] in TITLES:
        return TITLES[record['network']]
    return f'{record["network"]}, untrained' if record['iter'] == 0 else record['network']


def describe_score(name: str) -> str:
    """Readable name of a score: ``seen_class_k20_patch`` becomes ``seen class, k = 20, patch``."""
    return re.sub(r'_k(\d+)_?', r', k = \1, ', name).removesuffix(', ').replace('_', ' ')


def format_score(score: dict | None) -> str:
    """Accuracy with its standard error in percent, without the sign; empty for None."""
    return '' if score is None else f'{100 * score["accuracy"]:.1f} ± {100 * score["standard_error"]:.1f}'


def read_run(work_dir: str | Path) -> tuple[dict[str, dict], int]:
    """Read the scores of a finished run from its ``knn.json``.

    Returns:
        Scores by features (baselines such as ``'raw_pixels'``, ``'untrained'`` and ``'trained'``) and name, and the
        last iteration.

    Raises:
        ValueError: The run has no results from before and after training.
    """
    records = list(KNNRecords(work_dir))
    trained = sorted((record for record in records if record['iter'] is not None), key=lambda record: record['iter'])
    if len(trained) < 2:
        raise ValueError(f'{work_dir}/knn.json has no results before and after training: is the run finished?')
    run = {record['network']: record['scores'] for record in records if record['iter'] is None}
    return dict(run, untrained=trained[0]['scores'], trained=trained[-1]['scores']), trained[-1]['iter']


def read_curve(work_dir: str | Path, score: str) -> tuple[list[int], list[float]]:
    """Read the iterations and accuracies of a network during a run."""
    records = [record for record in KNNRecords(work_dir) if record['iter'] is not None]
    points = sorted((record['iter'], record['scores'][score]['accuracy']) for record in records)
    return [iteration for iteration, _ in points], [accuracy for _, accuracy in points]


def summarize(values: Sequence[float]) -> dict:
    """Mean and sample standard deviation (None for a single value) beside the values."""
    return dict(mean=mean(values), deviation=stdev(values) if len(values) > 1 else None, values=list(values))


def format_summary(summary: dict) -> str:
    """Format a :func:`summarize` of fractions in percent; a single seed has no std."""
    std = '' if summary['deviation'] is None else f' ± {100 * summary["deviation"]:.1f}'
    return f'{100 * summary["mean"]:.1f}{std}'


def paired_gain(runs: Sequence[dict[str, dict]], score: str, before: str, after: str = 'trained') -> dict | None:
    """Gain in accuracy of the features ``after`` over those ``before`` on the same images, averaged over the seeds.

    Args:
        runs: Scores by :func:`read_run` for every seed.
        score: Name of the score.
        before: Name of the features that are compared with.
        after: Name of the features whose gain is meant.

    Returns:
        ``gain`` and ``standard_error`` by bootstrap over the objects, which are the same in all runs; None if the
        identities of the objects are unknown.
    """
    pairs = [(run[before][score], run[after][score]) for run in runs]
    if not all('right_by_identity' in side for pair in pairs for side in pair):
        return None
    differences = [np.subtract(last['right_by_identity'], first['right_by_identity']) for first, last in pairs]
    sizes, right = pairs[0][0]['images_by_identity'], np.mean(differences, axis=0)
    return dict(gain=float(right.sum() / sum(sizes)), standard_error=clustered_standard_error(right, sizes))
