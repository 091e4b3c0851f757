"""Scores of rankings by descriptors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mm_sop.datasets.image_files import ImageFiles
from mm_sop.datasets.labeled.retrieval_tasks import Relevance
from mm_sop.evaluation.context import Score
from mm_sop.functional.retrieval import positive_ranks, ranks_to_average_precision, ranks_to_precision

CUTOFFS = (1, 5, 10)
METRICS = ('mAP', *(f'mP@{cutoff}' for cutoff in CUTOFFS))

# Queries whose similarities to the whole database are in memory at once.
_QUERY_BLOCK = 512


def score_queries(
    queries: Tensor, database: Tensor, levels: Mapping[str, Sequence[Relevance]], above: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Score every query at every level of difficulty.

    Args:
        queries: Descriptors of length 1, (n, D).
        database: Descriptors of length 1, (N, D).
        levels: Relevant images of every query, by level.
        above: Number of distractors ranked before every image of the database, (n, N). Defaults to None, none.

    Returns:
        Average precision and precisions at :data:`CUTOFFS` by level, (n, 4); NaN for queries without positives.
    """
    results = {level: np.full((len(queries), len(METRICS)), np.nan) for level in levels}
    for start in range(0, len(queries), _QUERY_BLOCK):
        similarity = queries[start : start + _QUERY_BLOCK] @ database.T
        rankings = similarity.argsort(dim=1, descending=True, stable=True)
        for query, ranking in enumerate(rankings, start=start):
            for level, relevances in levels.items():
                positives, junk = relevances[query].positives, relevances[query].junk
                if len(positives):
                    ranks = positive_ranks(ranking, positives, junk)
                    if above is not None:
                        ranks = ranks + above[query, ranking[torch.isin(ranking, torch.as_tensor(positives))]]
                    precisions = [ranks_to_precision(ranks, cutoff) for cutoff in CUTOFFS]
                    results[level][query] = [ranks_to_average_precision(ranks, len(positives)), *precisions]
    return results


def mean_score(values: np.ndarray) -> Score:
    """Mean of one value per query, NaN for those without positives, over the others, with its standard error."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return Score(float(values.mean()) if len(values) else float('nan'))
    return Score(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))


def spread_over_quality(qualities: Sequence[float] | np.ndarray, count: int) -> list[int]:
    """Indices of ``count`` examples from the best to the worst, evenly spaced in the ranking; NaN is never selected."""
    values = np.asarray(qualities, dtype=float)
    order = [index for index in np.argsort(-values, kind='stable').tolist() if np.isfinite(values[index])]
    ranks = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[rank] for rank in ranks]


def make_strip(
    query: int,
    similarity: Tensor,
    relevance: Relevance,
    caption: str,
    queries: ImageFiles,
    database: Sequence[Path | str],
    length: int = 8,
) -> dict:
    """Describe a query and its most similar images without junk, as data of a gallery.

    Args:
        query: Index in ``queries``.
        similarity: Similarity to every image of the database, (N,).
        relevance: Relevant images of the query.
        caption: Text below the query.
        queries: All queries.
        database: Paths.
        length: Number of images.

    Returns:
        ``query``, the path, with ``box`` and ``caption``; ``found``, path, similarity and whether it is right for each.
    """
    positives, junk = set(map(int, relevance.positives)), set(map(int, relevance.junk))
    ranking = similarity.argsort(descending=True, stable=True).tolist()
    shown = [index for index in ranking if index not in junk][:length]
    return dict(
        query=str(queries.paths[query]),
        box=None if queries.boxes is None else [float(side) for side in queries.boxes[query]],
        caption=caption,
        found=[(str(database[index]), float(similarity[index]), index in positives) for index in shown],
    )
