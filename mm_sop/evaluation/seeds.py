"""The k-NN results of runs that differ in their seed, put together."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from mm_sop.evaluation.records import KNNRecords
from mm_sop.evaluation.uncertainty import clustered_standard_error


def read_run(work_dir: str | Path) -> tuple[dict[str, dict], int]:
    """Scores of a finished run.

    Args:
        work_dir: Its folder, with ``knn.json``.

    Returns:
        Scores by features (``'raw_pixels'`` and others that need no training, ``'untrained'``, ``'trained'``) and name,
        and the iteration at which it ended.

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
    """Iterations and accuracies of a network during a run.

    Args:
        work_dir: Folder of the run, with ``knn.json``.
        score: Name of the score.
    """
    records = [record for record in KNNRecords(work_dir) if record['iter'] is not None]
    points = sorted((record['iter'], record['scores'][score]['accuracy']) for record in records)
    return [iteration for iteration, _ in points], [accuracy for _, accuracy in points]


def summarize(values: Sequence[float]) -> dict:
    """Mean and deviation (n - 1, None for a single value) beside the values."""
    return dict(mean=mean(values), deviation=stdev(values) if len(values) > 1 else None, values=list(values))


def format_summary(summary: dict) -> str:
    """A :func:`summarize` of shares in percent; a single seed has no deviation."""
    deviation = '' if summary['deviation'] is None else f' ± {100 * summary["deviation"]:.1f}'
    return f'{100 * summary["mean"]:.1f}{deviation}'


def paired_gain(runs: Sequence[dict[str, dict]], score: str, before: str, after: str = 'trained') -> dict | None:
    """What one kind of features gains over another on the same pictures, averaged over the seeds.

    Args:
        runs: Results of :func:`read_run`, of every seed.
        score: Name of the score.
        before: Features that are surpassed.
        after: Features that surpass them.

    Returns:
        ``gain`` and ``standard_error`` by bootstrap over the objects shown, which are the same in all runs; None if the
        identities of the objects are unknown.
    """
    pairs = [(run[before][score], run[after][score]) for run in runs]
    if not all('right_by_identity' in side for pair in pairs for side in pair):
        return None
    differences = [np.subtract(last['right_by_identity'], first['right_by_identity']) for first, last in pairs]
    sizes, right = pairs[0][0]['pictures_by_identity'], np.mean(differences, axis=0)
    return dict(gain=float(right.sum() / sum(sizes)), standard_error=clustered_standard_error(right, sizes))
