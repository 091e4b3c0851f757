import math

import pytest
import torch

from mm_sop.functional.knn import knn_scores, neighbor_votes


def loop_scores(train, labels, test, k, temperature, num_classes):
    """Votes by plain loops in float64; neighbors ordered by descending cosine, then by row."""
    votes = torch.zeros(len(test), num_classes, dtype=torch.float64)
    for i, query in enumerate(test.double().tolist()):
        cosines = []
        for j, row in enumerate(train.double().tolist()):
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            cosines.append((-dot / math.hypot(*query) / math.hypot(*row), j))
        for negative, j in sorted(cosines)[:k]:
            votes[i, labels[j]] += math.exp(-negative / temperature)
    return votes


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(1)
    train = torch.randn(40, 6, generator=generator) * torch.rand(40, 1, generator=generator).mul(3).add(0.1)
    test = torch.randn(17, 6, generator=generator)
    return train, torch.randint(5, (40,), generator=generator), test


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize('temperature', [0.07, 1.0])
def test_votes_equal_the_loop(features, dtype, tolerance, temperature):
    train, labels, test = features
    votes = knn_scores(train.to(dtype), labels, test.to(dtype), [1, 3, 40], temperature, num_classes=7)
    assert list(votes) == [1, 3, 40]
    for k, scores in votes.items():
        assert scores.dtype == dtype
        expected = loop_scores(train, labels.tolist(), test, k, temperature, 7)
        torch.testing.assert_close(scores.double(), expected, rtol=tolerance, atol=0)


def test_one_number_and_default_classes(features):
    train, labels, test = features
    votes = knn_scores(train, labels.clamp(max=3), test, 4)
    assert list(votes) == [4] and votes[4].shape == (17, 4)


def test_length_of_features_does_not_matter(features):
    train, labels, test = features
    scaled = knn_scores(train * 64, labels, test / 128, 5)[5]
    assert torch.equal(scaled, knn_scores(train, labels, test, 5)[5])


def test_majority_by_distance_equals_the_loop(features):
    train, labels, test = features
    votes = knn_scores(train, labels, test, [1, 5], math.inf, metric='euclidean')
    for k, found in votes.items():
        for query, counts in zip(test.tolist(), found, strict=True):
            nearest = sorted(range(40), key=lambda j, query=query: math.dist(query, train[j].tolist()))[:k]
            chosen = [int(labels[j]) for j in nearest]
            assert counts.tolist() == [chosen.count(label) for label in range(5)]
    cosine = knn_scores(train, labels, test, 5, math.inf)[5]
    assert not torch.equal(votes[5], cosine), 'lengths count'


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(features, dtype):
    train, labels, test = (part.to(dtype) if part.is_floating_point() else part for part in features)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        votes = knn_scores(train, labels, test, 5)[5]
    assert votes.dtype == torch.float32
    torch.testing.assert_close(votes, knn_scores(train.float(), labels, test.float(), 5)[5])


def test_collapsed_features_vote_for_the_first_rows():
    votes = knn_scores(torch.ones(50, 3), torch.arange(50), torch.ones(2, 3), 4)[4]
    assert torch.equal(votes.nonzero()[:, 1].view(2, 4), torch.arange(4).expand(2, -1))


def test_class_with_many_far_neighbors_loses_to_one_near():
    cosines = torch.tensor([[0.9, 0.5, 0.5, 0.5]])
    labels = torch.tensor([[2, 0, 0, 0]])
    votes = neighbor_votes(cosines, labels, [4], 0.07, 3)[4]
    assert votes.argmax() == 2
    assert neighbor_votes(cosines, labels, [4], 10.0, 3)[4].argmax() == 0


def test_bad_input_is_refused(features):
    train, labels, test = features
    with pytest.raises(ValueError, match='num_neighbors=41 does not fit a bank of 40'):
        knn_scores(train, labels, test, [1, 41])
    for numbers, smallest in (([], 0), ([0, 5], 0), ([5, -3], -3)):
        with pytest.raises(ValueError, match=f'num_neighbors={smallest} does not fit'):
            knn_scores(train, labels, test, numbers)
    with pytest.raises(ValueError, match='does not fit a bank of 0'):
        knn_scores(train[:0], labels[:0], test, 1)
    with pytest.raises(ValueError, match=r'\(17, 6\) and \(40, 5\)'):
        knn_scores(train[:, :5], labels, test, 1)
    with pytest.raises(ValueError, match='39,'):
        knn_scores(train, labels[:-1], test, 1)
    with pytest.raises(ValueError, match=r'labels of the bank must be in \[0, 2\)'):
        knn_scores(train, labels, test, 40, num_classes=2)
    with pytest.raises(ValueError, match='temperature must be above 0.01'):
        knn_scores(train, labels, test, 4, temperature=0.001)
    with pytest.raises(ValueError, match="one of .*'euclidean'.*got 'manhattan'"):
        knn_scores(train, labels, test, 4, metric='manhattan')
    test[3, 2] = torch.nan
    with pytest.raises(ValueError, match='queries are not finite'):
        knn_scores(train, labels, test, 4)
