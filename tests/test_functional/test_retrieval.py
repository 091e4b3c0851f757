import math
import random

import numpy as np
import pytest
import torch

from mm_sop.functional.retrieval import average_precision, positive_ranks, ranks_to_precision


def loop_average_precision(ranking, positives, junk):
    """Walk down the list, counting; the area of every recall step is a trapezoid."""
    seen, right, area = 0, 0, 0.0
    for index in ranking:
        if index in junk:
            continue
        if index in positives:
            before = 1.0 if seen == 0 else right / seen
            right += 1
            area += (before + right / (seen + 1)) / 2 / len(positives)
        seen += 1
    return area


def random_query(seed):
    rng = random.Random(seed)
    ranking = list(range(60))
    rng.shuffle(ranking)
    marked = rng.sample(range(60), 25)
    return ranking, marked[:9], marked[9 : 9 + rng.randrange(16)]


@pytest.mark.parametrize('seed', range(20))
def test_average_precision_equals_the_loop(seed):
    ranking, positives, junk = random_query(seed)
    expected = loop_average_precision(ranking, positives, junk)
    assert average_precision(ranking, positives, junk) == pytest.approx(expected, abs=1e-12)
    tensors = (torch.tensor(indices) for indices in (ranking, positives, junk))
    assert average_precision(*tensors) == pytest.approx(expected, abs=1e-12)


def test_worked_example_of_the_revisited_rules():
    # Without junk the list is 3 9 1 4; the positives stand first and fourth:
    # (1 + 1) / 2 / 2 for the first and (1/3 + 2/4) / 2 / 2 for the second.
    assert average_precision([7, 3, 9, 1, 4], [3, 4], [7]) == pytest.approx(1 / 2 + 5 / 24)
    # As a wrong image, 7 would push them to the second and the fifth place.
    assert average_precision([7, 3, 9, 1, 4], [3, 4]) == pytest.approx((0 + 1 / 2 + 1 / 4 + 2 / 5) / 4)


@pytest.mark.parametrize(
    'ranking, positives, expected',
    [([2, 0, 1], [2, 0], 1.0), ([0, 1], [5], 0.0), ([5, 1], [5, 6], 0.5), ([1, 0], [0], 0.25)],
)
def test_simple_lists(ranking, positives, expected):
    assert average_precision(ranking, positives) == expected


def test_no_positives_is_nan():
    assert math.isnan(average_precision([0, 1], []))


def test_order_of_the_truth_and_junk_after_the_last_positive_do_not_matter():
    ranking, positives, _ = random_query(3)
    last = max(ranking.index(index) for index in positives)
    score = average_precision(ranking, positives)
    assert average_precision(ranking, positives[::-1], ranking[last + 1 :]) == score


def test_bad_truth_is_named():
    with pytest.raises(ValueError, match=r'\[1\] are positives and junk at once'):
        average_precision([0, 1], [1], [1])
    with pytest.raises(ValueError, match='names an image twice'):
        average_precision([0, 1, 0], [1])
    for mask in (torch.tensor([True, False]), torch.tensor([1.0])):
        with pytest.raises(ValueError, match='expected indices, got torch.(bool|float32)'):
            average_precision([0, 1], mask)


def test_reversed_arrays_are_rankings():
    ranking = np.argsort([0.1, 0.9, 0.5])[::-1]
    assert average_precision(ranking, np.array([1])) == 1


def test_precision_counts_no_further_than_the_last_positive():
    ranks = positive_ranks([7, 3, 9, 1, 4, 8, 2], [3, 4], [7])
    assert ranks.tolist() == [0, 3]
    assert [ranks_to_precision(ranks, cutoff) for cutoff in (1, 2, 3, 4, 10)] == [1, 1 / 2, 1 / 3, 1 / 2, 1 / 2]
    assert ranks_to_precision(positive_ranks([0], [5]), 1) == 0
