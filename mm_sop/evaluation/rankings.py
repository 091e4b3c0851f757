"""Scores of rankings by descriptors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mm_sop.datasets.retrieval_tasks import Relevance
from mm_sop.evaluation.protocol import Score
from mm_sop.functional.retrieval import positive_ranks, ranks_to_average_precision, ranks_to_precision
from mm_sop.visualization.retrieval_strips import Strip

CUTOFFS = (1, 5, 10)
METRICS = ('mAP', *(f'mP@{cutoff}' for cutoff in CUTOFFS))

# Queries whose similarities to the whole database are held at once.
_QUERY_BLOCK = 512


def score_queries(
    queries: Tensor, database: Tensor, levels: dict[str, Sequence[Relevance]], above: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Score every query at every level of difficulty.

    Args:
        queries: Descriptors of length 1, (n, D).
        database: Descriptors of length 1, (N, D).
        levels: What every query should find, by level.
        above: Number of distractors before every picture of the database, (n, N). Defaults to None, no distractors.

    Returns:
        Average precision and precisions at :data:`CUTOFFS` by level, (n, 4); nan for queries without positives.
    """
    results = {level: np.full((len(queries), len(METRICS)), np.nan) for level in levels}
    for start in range(0, len(queries), _QUERY_BLOCK):
        similarity = queries[start : start + _QUERY_BLOCK] @ database.T
        rankings = similarity.argsort(dim=1, descending=True, stable=True)
        for query, ranking in enumerate(rankings, start=start):
            for level, relevance in levels.items():
                if len(relevance[query].positives):
                    results[level][query] = _score(ranking, relevance[query], None if above is None else above[query])
    return results


def mean_score(values: np.ndarray) -> Score:
    """Mean over the queries that have positives, with its standard error.

    Args:
        values: One value for every query, nan for those without positives.
    """
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return Score(float(values.mean()) if len(values) else float('nan'))
    return Score(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))


def make_strip(query: int, similarity: Tensor, relevance: Relevance, caption: str, length: int = 8) -> Strip:
    """The most similar pictures of a query, without junk.

    Args:
        query: Its index.
        similarity: To every picture of the database, (N,).
        relevance: What it should find.
        caption: Text below the query.
        length: Number of pictures.
    """
    positives, junk = set(map(int, relevance.positives)), set(map(int, relevance.junk))
    ranking = similarity.argsort(descending=True, stable=True).tolist()
    shown = [index for index in ranking if index not in junk][:length]
    return Strip(query, caption, [(index, float(similarity[index]), index in positives) for index in shown])


def _score(ranking: Tensor, relevance: Relevance, above: Tensor | None) -> list[float]:
    ranks = positive_ranks(ranking, relevance.positives, relevance.junk)
    if above is not None:
        ranks = ranks + above[ranking[torch.isin(ranking, torch.as_tensor(relevance.positives))]]
    precisions = [ranks_to_precision(ranks, cutoff) for cutoff in CUTOFFS]
    return [ranks_to_average_precision(ranks, len(relevance.positives)), *precisions]
