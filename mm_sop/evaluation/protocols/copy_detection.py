"""Copy detection on Copydays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from mm_sop.datasets.copydays import read_copydays
from mm_sop.datasets.picture_files import PictureFiles
from mm_sop.datasets.retrieval_tasks import Relevance
from mm_sop.datasets.unlabelled_images import UnlabelledImages
from mm_sop.evaluation.descriptors import Descriptor, count_distractors, describe
from mm_sop.evaluation.protocol import (
    PROTOCOLS,
    EvaluationContext,
    MissingDataError,
    Protocol,
    ProtocolResult,
    Score,
)
from mm_sop.evaluation.rankings import make_strip, mean_score, score_queries
from mm_sop.functional.whitening import fit_whitening, whiten
from mm_sop.visualization.page import Chart
from mm_sop.visualization.retrieval_strips import copies_chart, retrieval_strips, spread_over_quality


@PROTOCOLS.register_module('copy')
@dataclass
class CopyDetectionProtocol(Protocol):
    """Finds the original of an edited picture.

    After DINO and iBOT on Copydays: pictures are squeezed to a square, the descriptor is [CLS] beside the generalised
    mean of the patch tokens, perhaps whitened on other pictures. Mean average precision over the copies of a kind; the
    strong subset is the one that papers report. Their code stops at the first 20 of a ranking, and whitens descriptors
    that are not brought to length 1.

    Args:
        sets: Folders below the data; the first that exists is evaluated.
        size: Side of the square in pixels. Defaults to None, the crop size of the evaluation.
        parts: What the descriptor is made of, see :data:`~mm_sop.evaluation.descriptors.PARTS`.
        whitening: Folder below the data on whose pictures whitening is learnt; none of them may be evaluated. Defaults
            to None, no whitening.
        whitening_pictures: Number of pictures that it is learnt on at most, evenly spaced.
        distractors: Folder below the data whose pictures are searched beside the originals.
        distractor_block: Distractors whose descriptors a process holds at once.
        strips: Strong copies in the gallery.
    """

    sets: Sequence[str] = ('copies', 'copydays')
    size: int | None = None
    parts: Sequence[str] = ('global', 'gem')
    whitening: str | None = None
    whitening_pictures: int = 20_000
    distractors: str | None = None
    distractor_block: int = 10_000
    strips: int = 6

    def find_data(self, context: EvaluationContext) -> dict[str, Path]:
        """Folders of the copies, of the pictures for whitening and of the distractors."""
        found = [context.data / name for name in self.sets if (context.data / name).exists()]
        if not found:
            raise MissingDataError(
                f'{context.data} has none of {", ".join(self.sets)}: expected original/, strong/, jpegqual/ and crops/'
            )
        optional = {name: getattr(self, name) for name in ('whitening', 'distractors') if getattr(self, name)}
        folders = {name: context.find(folder, 'a folder of pictures') for name, folder in optional.items()}
        return dict(copies=found[0], **folders)

    def run(self, context: EvaluationContext, data: dict[str, Path]) -> ProtocolResult:
        """Search for the original of every copy."""
        copies = read_copydays(data['copies'])
        originals, edited = (PictureFiles(paths, self._steps(context)) for paths in (copies.originals, copies.paths))
        learnt_on, others = (self._folder(context, data.get(name)) for name in ('whitening', 'distractors'))
        change = self._learn_whitening(context, learnt_on) if learnt_on else _unchanged
        database, queries = change(self._describe(context, originals)), change(self._describe(context, edited))
        similarity, above = queries @ database.T, None
        if others:
            above = count_distractors(
                context, others, self._descriptor, queries, similarity, self.distractor_block, change
            )
        relevance = [Relevance([source], []) for source in copies.sources]
        precisions = score_queries(queries, database, dict(all=relevance), above)['all'][:, 0]
        card = dict(
            originals=len(originals),
            copies=len(edited),
            whitening_pictures=min(len(learnt_on), self.whitening_pictures),
            distractors=len(others),
            size=self._size(context),
            standard_error='over copies',
            mAP={kind: score.value for kind, score in _mean_by(copies.kinds, precisions).items()},
        )
        of_strong = np.where(np.array(copies.kinds) == 'strong', precisions, np.nan)
        strips = [
            make_strip(copy, similarity[copy], relevance[copy], f'AP {100 * precisions[copy]:.0f}')
            for copy in spread_over_quality(of_strong, self.strips)
        ]
        text = 'Strong copies from the best to the worst recognised, each with the most similar originals'
        pictures = [
            retrieval_strips('strips_strong', strips, edited, originals, text),
            Chart.drawn('kinds', partial(copies_chart, card['mAP']), 'Mean average precision by kind of edit.'),
        ]
        series = _mean_by([kind.split('/')[0] for kind in copies.kinds], precisions)
        return ProtocolResult({f'{name} mAP': score for name, score in series.items()}, card, pictures)

    def _size(self, context: EvaluationContext) -> int:
        return self.size or context.transform.crop_size

    def _steps(self, context: EvaluationContext) -> list[dict]:
        side = self._size(context)
        resize = dict(type='Resize', scale=(side, side), interpolation='bicubic', backend='pillow')
        return [dict(type='LoadPicture'), resize, dict(type='PackInputs')]

    @property
    def _descriptor(self) -> Descriptor:
        return Descriptor(tuple(self.parts))

    def _describe(self, context: EvaluationContext, pictures: Dataset) -> Tensor:
        transform = dict(squeezed_to=self._size(context), interpolation='bicubic', version=self.version)
        return describe(context, pictures, self._descriptor, transform)

    def _folder(self, context: EvaluationContext, folder: Path | None) -> Sequence:
        return UnlabelledImages(str(folder), pipeline=self._steps(context)) if folder else ()

    def _learn_whitening(self, context: EvaluationContext, pictures: UnlabelledImages) -> Callable[[Tensor], Tensor]:
        chosen = np.linspace(0, len(pictures) - 1, min(self.whitening_pictures, len(pictures))).round().astype(int)
        paths = [pictures.get_data_info(index)['img_path'] for index in chosen.tolist()]
        mean, projection = fit_whitening(self._describe(context, PictureFiles(paths, self._steps(context))))
        return partial(whiten, mean=mean, projection=projection)


def _unchanged(features: Tensor) -> Tensor:
    return features


def _mean_by(groups: Sequence[str], values: np.ndarray) -> dict[str, Score]:
    groups, names = np.array(groups), dict.fromkeys(groups)
    return {name: mean_score(values[groups == name]) for name in names}
