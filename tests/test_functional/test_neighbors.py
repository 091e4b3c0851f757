"""Exact nearest-neighbor search against loops."""

import math

import pytest
import torch

from mm_sop.functional import knn_scores, neighbors
from mm_sop.functional.neighbors import merge_neighbors, nearest_neighbors, stable_topk, unit_rows


def loop_neighbors(similarity, k):
    rows = [sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))[:k] for row in similarity.tolist()]
    return torch.tensor(rows)


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(1)
    train = torch.randn(40, 6, generator=generator) * torch.rand(40, 1, generator=generator).mul(3).add(0.1)
    test = torch.randn(17, 6, generator=generator)
    return train, torch.randint(5, (40,), generator=generator), test


@pytest.mark.parametrize('magnitude', [1e25, 3e38, 1e-14, 1e-30])
def test_rows_of_any_magnitude_have_length_one(features, magnitude):
    train, labels, test = features
    largest = train.abs().amax(1, keepdim=True)
    rows = unit_rows(train / largest * magnitude)
    expected = train.double() / train.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-6)
    votes = knn_scores(train / largest * magnitude, labels, test, 5)[5]
    torch.testing.assert_close(votes, knn_scores(train, labels, test, 5)[5], rtol=1e-4, atol=0)


def test_rows_of_zeros_stay():
    rows = unit_rows(torch.tensor([[0.0, 0.0], [3e30, -4e30]]))
    torch.testing.assert_close(rows, torch.tensor([[0.0, 0.0], [0.6, -0.8]]))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('shift', [0, 1000])
def test_distances_equal_the_loop(features, dtype, shift):
    """Whole numbers make all distances exact, with many ties."""
    train, _, test = ((3 * part).round().to(dtype) + shift if part.is_floating_point() else part for part in features)
    distances = torch.tensor([[math.dist(query, row) for row in train.tolist()] for query in test.tolist()])
    similarity, rows = nearest_neighbors(test, train, 9, 'euclidean')
    assert torch.equal(rows, loop_neighbors(-distances.double(), 9))
    torch.testing.assert_close(-similarity, distances.double().gather(1, rows), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('k', [1, 4, 7, 12])
def test_equal_cosines_are_taken_by_row(k):
    """Powers of two and axes make every cosine exact, so that ties are real ties."""
    axes = torch.eye(3)[[0, 1, 0, 2, 1, 0, 0, 2, 1, 0, 0, 1]] * torch.tensor([1, 2, 4, 1, 8, 2] * 2).unsqueeze(1)
    queries = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 4], [-1, 0, 0]])
    cosines, rows = nearest_neighbors(queries, axes, k)
    exact = queries.sign() @ axes.sign().T
    assert torch.equal(rows, loop_neighbors(exact, k))
    assert torch.equal(cosines, exact.gather(1, rows))


def test_blocks_change_nothing(features, monkeypatch):
    train, _, test = features
    whole = nearest_neighbors(test, train, 6)
    monkeypatch.setattr(neighbors, '_SIMILARITY_BLOCK', 3 * 40 * 4)
    cosines, rows = nearest_neighbors(test, train, 6)
    assert torch.equal(rows, whole[1])
    torch.testing.assert_close(cosines, whole[0])


@pytest.mark.parametrize('k', [1, 7, 40])
def test_faiss_gives_the_same(features, monkeypatch, k):
    train, _, test = features
    axes = torch.eye(6)[torch.arange(40) % 5]  # many ties
    searches = [(test, train), (test.sign(), axes)]
    expected = [nearest_neighbors(*search, k) for search in searches]
    monkeypatch.setattr(neighbors, '_faiss_is_faster', lambda queries, bank: True)
    for search, (cosines, rows) in zip(searches, expected, strict=True):
        found = nearest_neighbors(*search, k)
        assert torch.equal(found[1], rows)
        torch.testing.assert_close(found[0], cosines)


def test_faiss_serves_large_searches_in_fp32(monkeypatch):
    queries, bank = torch.ones(10, 2), torch.ones(30, 2)
    assert not neighbors._faiss_is_faster(queries, bank)
    monkeypatch.setattr(neighbors, '_SIMILARITY_BLOCK', 4 * 299)
    assert neighbors._faiss_is_faster(queries, bank)
    assert not neighbors._faiss_is_faster(queries.double(), bank.double())
    monkeypatch.setattr(neighbors, 'find_spec', lambda name: None)
    assert not neighbors._faiss_is_faster(queries, bank)


@pytest.mark.parametrize('k', [1, 3, 12])
def test_stable_topk_equals_the_loop(k):
    similarity = torch.randint(4, (50, 12), generator=torch.Generator().manual_seed(0)).float()
    values, columns = stable_topk(similarity, k)
    assert torch.equal(columns, loop_neighbors(similarity, k))
    assert torch.equal(values, similarity.gather(1, columns))


def test_shards_of_a_bank_merge_to_the_whole(features):
    train, _, test = features
    train = train.sign()  # many ties
    expected = nearest_neighbors(test.sign(), train, 8)
    cosines, rows = [], []
    for part in range(3):
        found = nearest_neighbors(test.sign(), train[part::3], 8)
        cosines.append(found[0])
        rows.append(found[1] * 3 + part)
    merged = merge_neighbors(torch.cat(cosines, 1), torch.cat(rows, 1), 8)
    torch.testing.assert_close(merged[0], expected[0])
    assert torch.equal(merged[1], expected[1])
