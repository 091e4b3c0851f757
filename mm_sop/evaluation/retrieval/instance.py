"""Instance retrieval: revisited Oxford and Paris, and labeled folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import Tensor

from mm_sop.datasets.image_files import ImageFiles
from mm_sop.datasets.labeled.retrieval_tasks import RetrievalTask, read_retrieval_task
from mm_sop.datasets.transforms.loading import read_geometry
from mm_sop.datasets.unlabeled import UnlabeledImages
from mm_sop.evaluation.context import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult
from mm_sop.evaluation.retrieval.descriptors import Descriptor, count_distractors, describe
from mm_sop.evaluation.retrieval.rankings import METRICS, make_strip, mean_score, score_queries, spread_over_quality

# Images in a batch if all have one size.
_BATCH_SIZE = 16


@PROTOCOLS.register_module('retrieval')
@dataclass
class RetrievalProtocol(Protocol):
    """Retrieval of other images of the query's object by the cosine similarity of descriptors.

    The protocol of revisited Oxford and Paris (Radenovic et al., 2018) with the settings of DINO and iBOT: longer side
    of at most 512 pixels, mean descriptor over three scales, mean average precision and precision at k for three levels
    of difficulty, junk ignored. Unlike here, their code does not crop the queries, and cuts off pixels that do not fill
    a patch. In a labeled folder every image is a query for the others of its identity or class. Levels at which no
    query has a positive have no scores.

    Args:
        sets: Folders below the data; those that exist are evaluated.
        max_side: Longer side to which larger images are resized, in pixels.
        scales: Scales of each image, relative to that size.
        parts: Arrays that the descriptor consists of, see :data:`DESCRIPTOR_PARTS`.
        crop_queries: Whether queries are cropped to their boxes.
        distractors: Folder below the data whose images are added to the database, such as the million of R1M.
        distractor_block: Distractors whose descriptors a process holds in memory.
        strips: Queries in the gallery.
    """

    sets: Sequence[str] = ('retrieval', 'classes/test', 'roxford5k', 'rparis6k')
    max_side: int = 512
    scales: Sequence[float] = (1.0, 0.5**0.5, 0.5)
    parts: Sequence[str] = ('global',)
    crop_queries: bool = True
    distractors: str | None = None
    distractor_block: int = 10_000
    strips: int = 6

    def find_data(self, context: EvaluationContext) -> dict[str, Path]:
        """Folders of the existing sets and of the distractors."""
        found = context.find_any(self.sets, 'a folder with gnd_<name>.pkl and jpg/, or with class folders')
        if self.distractors:
            found['distractors'] = context.find(self.distractors, 'a folder of images that no query should find')
        return found

    def run(self, context: EvaluationContext, data: dict[str, Path]) -> ProtocolResult:
        """Rank and score the sets one after the other."""
        card: dict = dict(similarity='cosine', standard_error='over queries', sets={})
        together = ProtocolResult({}, card, dict(strips={}))
        for name in self.sets:
            if name in data:
                result = self._evaluate(context, name, read_retrieval_task(data[name]), data.get('distractors'))
                together.scores.update(result.scores)
                card['sets'][name] = result.card
                together.data['strips'][name] = result.data
        return together

    def _evaluate(
        self, context: EvaluationContext, name: str, task: RetrievalTask, distractors: Path | None
    ) -> ProtocolResult:
        query_set = ImageFiles(task.queries, self._pipeline, task.boxes if self.crop_queries else None)
        queries = self._describe(context, query_set)
        database = self._describe(context, ImageFiles(task.database, self._pipeline))
        card, above = dict(queries=len(queries), database=len(database)), None
        if distractors:
            others = UnlabeledImages(str(distractors), pipeline=self._pipeline)
            card['distractors'] = len(others)
            similarity, part = queries @ database.T, f'distractors/{name}'
            above = count_distractors(
                context, others, self._descriptor, queries, similarity, self.distractor_block, part=part
            )
        results = score_queries(queries, database, task.levels, above)
        answerable = {level: int(np.isfinite(values[:, 0]).sum()) for level, values in results.items()}
        results = {level: values for level, values in results.items() if answerable[level]}
        if not results:
            raise ValueError(f'{name}: no query has another image of its object to find')
        scores = {
            f'{name} {level} {metric}': mean_score(values[:, column])
            for level, values in results.items()
            for column, metric in enumerate(METRICS)
        }
        level, values = next(iter(results.items()))
        strips = []
        for query in spread_over_quality(values[:, 0], self.strips):
            similarity, caption = queries[query] @ database.T, f'AP {100 * values[query, 0]:.0f}'
            relevance = task.levels[level][query]
            strips.append(make_strip(query, similarity, relevance, caption, query_set, task.database))
        return ProtocolResult(scores, dict(card, answerable=answerable), dict(level=level, rows=strips))

    @property
    def _pipeline(self) -> list[dict]:
        return [dict(type='LoadImage'), dict(type='FitWithin', max_side=self.max_side), dict(type='PackInputs')]

    @property
    def _descriptor(self) -> Descriptor:
        return Descriptor(tuple(self.parts), tuple(self.scales))

    def _describe(self, context: EvaluationContext, images: ImageFiles) -> Tensor:
        transform = dict(max_side=self.max_side, boxes=images.boxes, version=self.version)
        sizes = (read_geometry(path)[0] for path in images.paths)
        has_one_size = images.boxes is None and all(first == second for first, second in pairwise(sizes))
        return describe(context, images, self._descriptor, transform, _BATCH_SIZE if has_one_size else 1)
