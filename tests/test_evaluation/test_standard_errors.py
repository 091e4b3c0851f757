import math

import numpy as np
import pytest

from mm_sop.evaluation import standard_errors
from mm_sop.evaluation.standard_errors import (
    binomial_standard_error,
    clustered_standard_error,
    count_by_cluster,
    standard_error,
)


def by_cluster(correct, clusters, **options):
    return clustered_standard_error(*count_by_cluster(correct, clusters), **options)


def test_counts():
    right, sizes = count_by_cluster(np.array([True, False, True, True]), np.array([7, 3, 7, 3]))
    assert (right.tolist(), sizes.tolist()) == ([1, 2], [2, 2])


def test_difficulty_of_objects_cancels_in_paired_differences():
    generator = np.random.default_rng(0)
    difficulty, objects = np.arange(50).repeat(20) / 50, np.arange(50).repeat(20)
    first, _ = count_by_cluster(generator.random(1000) < difficulty, objects)
    second, sizes = count_by_cluster(generator.random(1000) < np.minimum(difficulty + 0.1, 1), objects)
    apart = np.hypot(clustered_standard_error(first, sizes), clustered_standard_error(second, sizes))
    assert clustered_standard_error(second - first, sizes) < 0.5 * apart


def test_binomial():
    assert binomial_standard_error(0.25, 300) == pytest.approx(0.025)
    assert binomial_standard_error(1.0, 10) == 0


def test_single_images_give_the_binomial_error():
    correct = np.random.default_rng(0).random(400) < 0.3
    expected = binomial_standard_error(correct.mean(), 400)
    assert by_cluster(correct, np.arange(400) * 7) == pytest.approx(expected, rel=0.05)


def test_images_that_agree_count_once():
    per_object = np.random.default_rng(0).random(50) < 0.4
    correct, objects = per_object.repeat(20), np.arange(50).repeat(20)
    expected = binomial_standard_error(per_object.mean(), 50)
    assert by_cluster(correct, objects) == pytest.approx(expected, rel=0.06)


def test_unequal_clusters_equal_the_loop():
    generator = np.random.default_rng(3)
    objects = generator.integers(0, 12, 90)
    correct = generator.random(90) < 0.2 + 0.05 * objects
    accuracies = []
    for _ in range(4000):
        drawn = [objects == name for name in generator.choice(np.unique(objects), 12)]
        accuracies.append(sum(correct[o].sum() for o in drawn) / sum(o.sum() for o in drawn))
    assert by_cluster(correct, objects, repeats=4000) == pytest.approx(np.std(accuracies), rel=0.06)


def test_seed_and_blocks(monkeypatch):
    correct = np.arange(60) % 3 == 0
    objects = np.arange(60) // 4
    first = by_cluster(correct, objects, repeats=100)
    assert by_cluster(correct, objects, repeats=100, seed=1) != first
    monkeypatch.setattr(standard_errors, '_DRAW_BLOCK', 7 * 15)
    assert by_cluster(correct, objects, repeats=100) == pytest.approx(first, rel=1e-12)


def test_one_object_has_no_spread():
    assert by_cluster(np.array([True, False]), np.array([5, 5])) == 0
    assert math.isclose(binomial_standard_error(0.5, 2), math.sqrt(0.125))


def test_standard_error_by_clusters_or_images():
    correct, clusters = np.array([True, True, False, False]), np.array([0, 0, 1, 1])
    assert standard_error(correct) == binomial_standard_error(0.5, 4)
    assert standard_error(correct, clusters) == clustered_standard_error(*count_by_cluster(correct, clusters))
    assert standard_error(correct, clusters) > standard_error(correct)
