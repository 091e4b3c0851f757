"""Instance retrieval: the revisited Oxford and Paris sets, and labelled folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from mm_sop.datasets.picture_files import PictureFiles
from mm_sop.datasets.retrieval_tasks import RetrievalTask, read_retrieval_task
from mm_sop.datasets.transforms.loading import read_geometry
from mm_sop.datasets.unlabelled_images import UnlabelledImages
from mm_sop.evaluation.descriptors import Descriptor, count_distractors, describe
from mm_sop.evaluation.protocol import (
    PROTOCOLS,
    EvaluationContext,
    MissingDataError,
    Protocol,
    ProtocolResult,
)
from mm_sop.evaluation.rankings import METRICS, make_strip, mean_score, score_queries
from mm_sop.visualization.retrieval_strips import retrieval_strips, spread_over_quality

# Encoded at once where all have one size.
_LARGE_PICTURES = 16


@PROTOCOLS.register_module('retrieval')
@dataclass
class RetrievalProtocol(Protocol):
    """Finds other pictures of the object in a query by the cosine of descriptors.

    The protocol of revisited Oxford and Paris (Radenovic et al., 2018) with the settings of DINO and iBOT: longer side
    of at most 512 pixels, mean descriptor of three sizes, mean average precision and precision at k for three levels of
    difficulty, junk left out. Their code searches with whole queries and cuts off pixels that do not fill a patch. In a
    labelled folder every picture searches for the others of its identity or class. Levels at which no query has
    something to find have no scores.

    Args:
        sets: Folders below the data; those that exist are evaluated.
        max_side: Longer side to which larger pictures are shrunk, in pixels.
        scales: Sizes at which each picture is shown, relative to that.
        parts: What the descriptor is made of, see :data:`~mm_sop.evaluation.descriptors.PARTS`.
        crop_queries: Whether queries are cut to their boxes.
        distractors: Folder below the data whose pictures are added to the database, such as the million of R1M.
        distractor_block: Distractors whose descriptors a process holds at once.
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
        """Folders of the sets that exist, and of the distractors."""
        found = {name: context.data / name for name in self.sets if (context.data / name).exists()}
        if not found:
            raise MissingDataError(
                f'{context.data} has none of {", ".join(self.sets)}: expected a folder with gnd_<name>.pkl and jpg/, '
                'or with class folders'
            )
        if self.distractors:
            found['distractors'] = context.find(self.distractors, 'a folder of pictures that no query should find')
        return found

    def run(self, context: EvaluationContext, data: dict[str, Path]) -> ProtocolResult:
        """Rank and score the sets one after the other."""
        together = ProtocolResult({}, dict(similarity='cosine', standard_error='over queries', sets={}), [])
        for name in self.sets:
            if name in data:
                result = self._evaluate(context, name, read_retrieval_task(data[name]), data.get('distractors'))
                together.scores.update(result.scores)
                together.card['sets'][name] = result.card
                together.pictures.extend(result.pictures)
        return together

    def _evaluate(
        self, context: EvaluationContext, name: str, task: RetrievalTask, distractors: Path | None
    ) -> ProtocolResult:
        query_set = PictureFiles(task.queries, self._pipeline, task.boxes if self.crop_queries else None)
        database_set = PictureFiles(task.database, self._pipeline)
        queries, database = self._describe(context, query_set), self._describe(context, database_set)
        card, above = dict(queries=len(queries), database=len(database)), None
        if distractors:
            others = UnlabelledImages(str(distractors), pipeline=self._pipeline)
            card['distractors'] = len(others)
            above = count_distractors(
                context,
                others,
                self._descriptor,
                queries,
                queries @ database.T,
                self.distractor_block,
                part=f'distractors/{name}',
            )
        results = score_queries(queries, database, task.levels, above)
        card['answerable'] = {level: int(np.isfinite(values[:, 0]).sum()) for level, values in results.items()}
        results = {level: values for level, values in results.items() if card['answerable'][level]}
        if not results:
            raise ValueError(f'{name}: no query has another image of its object to find')
        scores = {
            f'{name} {level} {metric}': mean_score(values[:, column])
            for level, values in results.items()
            for column, metric in enumerate(METRICS)
        }
        level, values = next(iter(results.items()))
        strips = [
            make_strip(
                query, queries[query] @ database.T, task.levels[level][query], f'AP {100 * values[query, 0]:.0f}'
            )
            for query in spread_over_quality(values[:, 0], self.strips)
        ]
        text = f'{name}, {level}: queries from the best to the worst answered, each with the most similar pictures'
        photo = retrieval_strips(f'strips_{name.replace("/", "-")}', strips, query_set, database_set, text)
        return ProtocolResult(scores, card, [photo])

    @property
    def _pipeline(self) -> list[dict]:
        return [dict(type='LoadPicture'), dict(type='FitWithin', max_side=self.max_side), dict(type='PackInputs')]

    @property
    def _descriptor(self) -> Descriptor:
        return Descriptor(tuple(self.parts), tuple(self.scales))

    def _describe(self, context: EvaluationContext, pictures: PictureFiles) -> Tensor:
        transform = dict(max_side=self.max_side, boxes=pictures.boxes, version=self.version)
        batch_size = _LARGE_PICTURES if pictures.boxes is None and _have_one_size(pictures.paths) else 1
        return describe(context, pictures, self._descriptor, transform, batch_size)


def _have_one_size(paths: Sequence[Path]) -> bool:
    sizes = (read_geometry(path)[0] for path in paths)
    first = next(sizes)
    return all(size == first for size in sizes)
