import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from mm_sop.datasets.image_files import ImageFiles
from mm_sop.datasets.labeled.retrieval_tasks import Relevance
from mm_sop.evaluation.retrieval import rankings
from mm_sop.evaluation.retrieval.rankings import make_strip, mean_score, score_queries, spread_over_quality
from mm_sop.functional.retrieval import average_precision


@pytest.fixture
def search():
    generator = torch.Generator().manual_seed(3)
    queries, database = (normalize(torch.randn(n, 4, generator=generator), dim=1) for n in (7, 30))
    relevance = [Relevance(range(query, 30, 5), range(query + 1, 30, 7)) for query in range(7)]
    relevance = [Relevance([i for i in r.positives if i not in r.junk], r.junk) for r in relevance]
    return queries, database, relevance


@pytest.mark.parametrize('block', [2, 512])
def test_scores_are_those_of_every_query(search, monkeypatch, block):
    monkeypatch.setattr(rankings, '_QUERY_BLOCK', block)
    queries, database, relevance = search
    relevance[3] = Relevance([], [1])
    scores = score_queries(queries, database, dict(level=relevance))['level']
    assert np.isnan(scores[3]).all()
    for query in (0, 1, 2, 4, 5, 6):
        ranking = sorted(range(30), key=lambda i, q=query: -float(queries[q] @ database[i]))
        assert scores[query, 0] == pytest.approx(average_precision(ranking, *relevance[query]))
        kept = [index for index in ranking if index not in relevance[query].junk]
        assert scores[query, 1] == (kept[0] in relevance[query].positives)


def test_distractors_count_as_wrong_images(search):
    queries, database, relevance = search
    others = normalize(torch.randn(40, 4, generator=torch.Generator().manual_seed(9)), dim=1)
    above = ((queries @ others.T)[:, None] > (queries @ database.T)[:, :, None]).sum(2)
    streamed = score_queries(queries, database, dict(all=relevance), above)['all']
    together = score_queries(queries, torch.cat([database, others]), dict(all=relevance))['all']
    np.testing.assert_allclose(streamed, together, rtol=1e-12)
    assert (streamed[:, 0] < score_queries(queries, database, dict(all=relevance))['all'][:, 0]).all()


def test_mean_leaves_out_unanswerable_queries():
    score = mean_score(np.array([0.5, np.nan, 1.0, 0.0]))
    assert score.value == 0.5 and score.error == pytest.approx(0.5 / 3**0.5)
    assert mean_score(np.array([0.25])).error is None
    assert np.isnan(mean_score(np.array([np.nan])).value)


def test_strips_leave_out_junk():
    similarity, relevance = torch.tensor([0.1, 0.9, 0.5, 0.9]), Relevance([2, 3], [1])
    queries = ImageFiles([f'query{number}' for number in range(5)], [], [(0, 0, 9, number) for number in range(5)])
    strip = make_strip(4, similarity, relevance, 'AP 50', queries, ['a', 'b', 'c', 'd'], length=2)
    assert (strip['query'], strip['box'], strip['caption']) == ('query4', [0, 0, 9, 4], 'AP 50')
    assert [(path, right) for path, _, right in strip['found']] == [('d', True), ('c', True)]


@pytest.mark.parametrize('count, expected', [(2, [3, 4]), (3, [3, 0, 4]), (9, [3, 1, 0, 4])])
def test_examples_go_from_the_best_to_the_worst(count, expected):
    assert spread_over_quality([0.5, 0.7, np.nan, 0.9, 0.1], count) == expected
