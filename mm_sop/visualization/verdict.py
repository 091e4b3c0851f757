"""Is the network learning? An answer with figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mm_sop.evaluation.records import describe_score

NETWORKS = ('teacher', 'student', 'backbone')


@dataclass(frozen=True)
class Comparison:
    """One score of the trained network beside that of the untrained one; accuracies in [0, 1].

    Attributes:
        name: Name of the score.
        before: Score of the untrained network.
        after: Score of the trained network.
    """

    name: str
    before: dict
    after: dict

    @property
    def gain(self) -> float:
        """Difference of the accuracies."""
        return self.after['accuracy'] - self.before['accuracy']

    @property
    def standard_errors(self) -> float:
        """The gain in standard errors of the difference, taken as if both came from different pictures."""
        error = math.hypot(self.after['standard_error'], self.before['standard_error'])
        return self.gain / max(error, 1e-9)


@dataclass(frozen=True)
class Verdict:
    """Answer of a run.

    Attributes:
        answer: ``'yes'``, ``'not shown'``, ``'no'`` or ``'unknown'``.
        opening: The answer in words.
        figures: What it rests on; empty if it is unknown.
        comparisons: Every score before and after training; the answer is about the first.
    """

    answer: str
    opening: str
    figures: str = ''
    comparisons: tuple[Comparison, ...] = ()

    def to_dict(self) -> dict:
        """All of it, ready for JSON."""
        scores = {
            c.name: dict(before=c.before, after=c.after, gain=c.gain, standard_errors=c.standard_errors)
            for c in self.comparisons
        }
        return dict(answer=self.answer, sentence=f'{self.opening} {self.figures}'.strip(), scores=scores)


def judge(records: Sequence[dict]) -> Verdict:
    """Compare the last evaluation of a run with that of its untrained network.

    A gain of 3 standard errors or more is learning, a loss of 3 or more the opposite.

    Args:
        records: Records of :class:`KNNRecords`.

    Returns:
        The verdict.
    """
    evaluations = sorted((r for r in records if r['network'] in NETWORKS), key=lambda record: record['iter'])
    if not evaluations:
        return Verdict('unknown', 'Not known: nothing was measured. Add KNNHook to the config.')
    first, last = evaluations[0], evaluations[-1]
    if first['iter'] != 0 or last['iter'] == 0:
        missing = 'untrained' if first['iter'] else 'trained'
        return Verdict('unknown', f'Not known: there is no k-NN measurement of the {missing} network.')
    names = [name for name in last['scores'] if name in first['scores']]
    comparisons = tuple(Comparison(name, first['scores'][name], last['scores'][name]) for name in names)
    answer, opening = _answer(comparisons[0].standard_errors)
    return Verdict(answer, opening, _describe(comparisons[0], last), comparisons)


def _answer(standard_errors: float) -> tuple[str, str]:
    if standard_errors >= 3:
        return 'yes', 'Yes, it is learning.'
    if standard_errors <= -3:
        return 'no', 'No: it is worse than before training.'
    return 'not shown', 'Not shown: the difference to the untrained network could be chance.'


def _describe(comparison: Comparison, record: dict) -> str:
    after, before = comparison.after, comparison.before
    return (
        f'After {record["iter"]:,} iterations the {record["network"]} has {100 * after["accuracy"]:.1f} ± '
        f'{100 * after["standard_error"]:.1f} % of “{describe_score(comparison.name)}” right by k-NN, the untrained '
        f'network {100 * before["accuracy"]:.1f} ± {100 * before["standard_error"]:.1f} %: '
        f'{100 * comparison.gain:+.1f} points, {comparison.standard_errors:.1f} standard errors.'
    )
