from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from mm_sop.evaluation.representation.clustering import agreement, k_means


def slow_accuracy(labels, clusters):
    names = sorted({*labels, *clusters})
    return max(
        np.mean([order[names.index(cluster)] == label for label, cluster in zip(labels, clusters, strict=True)])
        for order in permutations(names)
    )


@pytest.mark.parametrize('seed', range(4))
def test_agreement_equals_other_implementations(seed):
    rng = np.random.default_rng(seed)
    labels, clusters = rng.integers(0, 4, 40), rng.integers(0, 5, 40)
    clusters[:20] = labels[:20]
    found = agreement(labels, clusters)
    assert found['accuracy'] == pytest.approx(slow_accuracy(labels, clusters))
    assert found['nmi'] == pytest.approx(normalized_mutual_info_score(labels, clusters))
    assert found['ari'] == pytest.approx(adjusted_rand_score(labels, clusters))


def test_names_of_clusters_do_not_matter():
    found = agreement(np.array([5, 5, 8, 8, 9]), np.array([1, 1, 0, 0, 7]))
    assert found == pytest.approx(dict(accuracy=1, nmi=1, ari=1))


@pytest.mark.parametrize('labels', [np.arange(5), np.zeros(5, int), np.zeros(1, int)])
def test_identical_partitions_score_one_however_trivial(labels):
    assert agreement(labels, labels) == dict(accuracy=1, nmi=1, ari=1)
    assert (normalized_mutual_info_score(labels, labels), adjusted_rand_score(labels, labels)) == (1, 1)


def test_trivial_clusters_score_as_in_scikit_learn():
    labels = np.array([0, 0, 1, 1, 2])
    for clusters in (np.arange(5), np.zeros(5, int)):
        found = agreement(labels, clusters)
        assert found['nmi'] == pytest.approx(normalized_mutual_info_score(labels, clusters))
        assert found['ari'] == pytest.approx(adjusted_rand_score(labels, clusters)) == 0


def test_k_means_finds_directions():
    angles = torch.cat([center + torch.linspace(-0.2, 0.2, 9) for center in (0, 2, 4)])
    lengths = torch.rand(27, 1, generator=torch.Generator().manual_seed(0)) + 0.1
    clusters = k_means(lengths * torch.stack([angles.cos(), angles.sin()], 1), 3, seed=0, restarts=2)
    assert agreement(np.arange(27) // 9, clusters)['accuracy'] == 1
