import math

import pytest

from mm_sop.report.verdict import judge


def record(iteration, accuracy, network='teacher', error=0.03):
    scores = dict(seen_class_k20=dict(accuracy=accuracy, standard_error=error))
    return dict(network=network, iter=iteration, scores=scores)


REFERENCE = record(None, 0.9, 'raw_pixels')


@pytest.mark.parametrize('after, answer', [(0.45, 'yes'), (0.25, 'not shown'), (0.35, 'not shown'), (0.05, 'no')])
def test_answer_follows_from_standard_errors(after, answer):
    verdict = judge([REFERENCE, record(500, after), record(0, 0.25), record(200, 0.99)])
    assert verdict.answer == answer
    comparison = verdict.comparisons[0]
    assert comparison.gain == pytest.approx(after - 0.25)
    assert comparison.standard_errors == pytest.approx((after - 0.25) / (0.03 * math.sqrt(2)))


def test_sentence_has_the_numbers():
    verdict = judge([record(0, 0.25), record(12500, 0.45)])
    sentence = verdict.to_dict()['sentence']
    assert sentence.startswith(
        'Yes, it is learning. After 12,500 iterations the teacher classifies 45.0 ± 3.0 % of “seen '
    )
    assert 'seen class, k = 20' in sentence
    assert sentence.endswith('untrained network 25.0 ± 3.0 %: +20.0 points, 4.7 standard errors.')


def test_no_spread_at_all():
    verdict = judge([record(0, 0.0, error=0.0), record(5, 1.0, error=0.0)])
    assert verdict.answer == 'yes' and math.isfinite(verdict.comparisons[0].standard_errors)


@pytest.mark.parametrize(
    'records, reason',
    [
        ([], 'Add KNNHook'),
        ([REFERENCE], 'Add KNNHook'),
        ([record(0, 0.2)], 'no k-NN measurement of the trained'),
        ([record(50, 0.2), record(100, 0.3)], 'no k-NN measurement of the untrained'),
    ],
)
def test_unknown(records, reason):
    verdict = judge(records)
    assert verdict.answer == 'unknown' and reason in verdict.opening and not verdict.comparisons


def test_scores_that_only_one_evaluation_has_are_left_out():
    last = record(10, 0.5)
    last['scores'] = {'new_k1': last['scores']['seen_class_k20'], **last['scores']}
    assert [c.name for c in judge([record(0, 0.2), last]).comparisons] == ['seen_class_k20']
