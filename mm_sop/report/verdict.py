"""Is the network learning? An answer with its evidence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mm_sop.evaluation.classification.knn_records import describe_score, format_score

NETWORKS = ('teacher', 'student', 'backbone')
"""Networks of a run, the preferred one first."""


@dataclass(frozen=True)
class Comparison:
    """A score of the untrained network, ``before``, and of the trained one, ``after``; accuracies in [0, 1]."""

    name: str
    before: dict
    after: dict

    @property
    def gain(self) -> float:
        """Difference of the accuracies."""
        return self.after['accuracy'] - self.before['accuracy']

    @property
    def standard_errors(self) -> float:
        """The gain in standard errors of the difference, as if both scores were of different images."""
        error = math.hypot(self.after['standard_error'], self.before['standard_error'])
        return self.gain / max(error, 1e-9)


@dataclass(frozen=True)
class Verdict:
    """Whether a run is learning.

    Attributes:
        answer: ``'yes'``, ``'not shown'``, ``'no'`` or ``'unknown'``.
        opening: The answer in words.
        evidence: The numbers behind it; empty if the answer is unknown.
        comparisons: Every score before and after training; the answer is about the first.
    """

    answer: str
    opening: str
    evidence: str = ''
    comparisons: tuple[Comparison, ...] = ()

    def to_dict(self) -> dict:
        """JSON-serializable content."""
        scores = {
            c.name: dict(before=c.before, after=c.after, gain=c.gain, standard_errors=c.standard_errors)
            for c in self.comparisons
        }
        return dict(answer=self.answer, sentence=f'{self.opening} {self.evidence}'.strip(), scores=scores)


def judge(records: Sequence[dict]) -> Verdict:
    """Compare the last evaluation of a run with that of its untrained network, from records of :class:`KNNRecords`.

    A gain of 3 standard errors or more means that the network is learning, a loss of 3 or more the opposite.
    """
    evaluations = sorted((r for r in records if r['network'] in NETWORKS), key=lambda record: record['iter'])
    if not evaluations:
        return Verdict('unknown', 'Unknown: nothing was measured. Add KNNHook to the config.')
    first, last = evaluations[0], evaluations[-1]
    if first['iter'] != 0 or last['iter'] == 0:
        missing = 'untrained' if first['iter'] else 'trained'
        return Verdict('unknown', f'Unknown: there is no k-NN measurement of the {missing} network.')
    names = [name for name in last['scores'] if name in first['scores']]
    comparisons = tuple(Comparison(name, first['scores'][name], last['scores'][name]) for name in names)
    lead = comparisons[0]
    if lead.standard_errors >= 3:
        answer, opening = 'yes', 'Yes, it is learning.'
    elif lead.standard_errors <= -3:
        answer, opening = 'no', 'No: it is worse than before training.'
    else:
        answer, opening = 'not shown', 'Not shown: the difference from the untrained network could be chance.'
    evidence = (
        f'After {last["iter"]:,} iterations the {last["network"]} classifies {format_score(lead.after)} % of '
        f'“{describe_score(lead.name)}” correctly by k-NN, the untrained network {format_score(lead.before)} %: '
        f'{100 * lead.gain:+.1f} points, {lead.standard_errors:.1f} standard errors.'
    )
    return Verdict(answer, opening, evidence, comparisons)
