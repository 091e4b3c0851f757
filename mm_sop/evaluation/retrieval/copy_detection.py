"""Copy detection on Copydays."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from mm_sop.datasets.image_files import ImageFiles, list_images
from mm_sop.datasets.labeled.copydays import read_copydays
from mm_sop.datasets.labeled.retrieval_tasks import Relevance
from mm_sop.datasets.unlabeled import UnlabeledImages
from mm_sop.evaluation.context import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult, Score
from mm_sop.evaluation.retrieval.descriptors import Descriptor, count_distractors, describe
from mm_sop.evaluation.retrieval.rankings import make_strip, mean_score, score_queries, spread_over_quality
from mm_sop.functional.whitening import fit_whitening, whiten


@PROTOCOLS.register_module('copy')
@dataclass
class CopyDetectionProtocol(Protocol):
    """Retrieval of the original of an edited image.

    Follows DINO and iBOT on Copydays: images are resized to a square without keeping the aspect ratio, the descriptor
    is the concatenation of [CLS] and the generalized mean of the patch tokens, optionally whitened. The score is mean
    average precision over the copies of a kind; papers report the strong subset. Unlike here, their code only considers
    the first 20 images of a ranking, and whitens descriptors that are not normalized.

    Args:
        sets: Folders below the data; the first that exists is evaluated.
        size: Side of the square in pixels. Defaults to None, the crop size of the evaluation.
        parts: Arrays that the descriptor consists of, see :data:`DESCRIPTOR_PARTS`.
        whitening: Folder below the data on whose images whitening is learned; it must not overlap with the evaluated
            images. Defaults to None, no whitening.
        whitening_images: Largest number of images for whitening, evenly spaced.
        distractors: Folder below the data whose images are added to the database.
        distractor_block: Distractors whose descriptors a process holds in memory.
        strips: Strong copies in the gallery.
    """

    sets: Sequence[str] = ('copies', 'copydays')
    size: int | None = None
    parts: Sequence[str] = ('global', 'gem')
    whitening: str | None = None
    whitening_images: int = 20_000
    distractors: str | None = None
    distractor_block: int = 10_000
    strips: int = 6

    def find_data(self, context: EvaluationContext) -> dict[str, Path]:
        """Folders of the copies, of the images for whitening and of the distractors."""
        found = context.find_any(self.sets, 'original/, strong/, jpegqual/ and crops/')
        optional = {name: getattr(self, name) for name in ('whitening', 'distractors') if getattr(self, name)}
        folders = {name: context.find(folder, 'a folder of images') for name, folder in optional.items()}
        return dict(copies=next(iter(found.values())), **folders)

    def run(self, context: EvaluationContext, data: dict[str, Path]) -> ProtocolResult:
        """Search for the original of every copy."""
        copies = read_copydays(data['copies'])
        originals, edited = (ImageFiles(paths, self._steps(context)) for paths in (copies.originals, copies.paths))
        others = UnlabeledImages(str(data['distractors']), self._steps(context)) if 'distractors' in data else None
        num_whitening, change = 0, None
        if 'whitening' in data:
            paths = list_images(data['whitening'])
            num_whitening = min(self.whitening_images, len(paths))
            rows = np.linspace(0, len(paths) - 1, num_whitening).round().astype(int).tolist()
            learned_on = ImageFiles([paths[row] for row in rows], self._steps(context))
            mean, projection = fit_whitening(self._describe(context, learned_on))
            change = partial(whiten, mean=mean, projection=projection)
        database, queries = self._describe(context, originals), self._describe(context, edited)
        if change is not None:
            database, queries = change(database), change(queries)
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
            whitening_images=num_whitening,
            distractors=len(others) if others else 0,
            size=self._size(context),
            standard_error='over copies',
            mAP={kind: score.value for kind, score in _mean_by(copies.kinds, precisions).items()},
        )
        of_strong = np.where(np.array(copies.kinds) == 'strong', precisions, np.nan)
        strips = []
        for copy in spread_over_quality(of_strong, self.strips):
            caption = f'AP {100 * precisions[copy]:.0f}'
            strips.append(make_strip(copy, similarity[copy], relevance[copy], caption, edited, originals.paths))
        by_kind = _mean_by([kind.split('/')[0] for kind in copies.kinds], precisions)
        scores = {f'{name} mAP': score for name, score in by_kind.items()}
        return ProtocolResult(scores, card, dict(strips=strips, precisions=card['mAP']))

    def _size(self, context: EvaluationContext) -> int:
        return self.size or context.transform.crop_size

    def _steps(self, context: EvaluationContext) -> list[dict]:
        side = self._size(context)
        resize = dict(type='Resize', scale=(side, side), interpolation='bicubic', backend='pillow')
        return [dict(type='LoadImage'), resize, dict(type='PackInputs')]

    @property
    def _descriptor(self) -> Descriptor:
        return Descriptor(tuple(self.parts))

    def _describe(self, context: EvaluationContext, images: Dataset) -> Tensor:
        transform = dict(squeezed_to=self._size(context), interpolation='bicubic', version=self.version)
        return describe(context, images, self._descriptor, transform)


def _mean_by(groups: Sequence[str], values: np.ndarray) -> dict[str, Score]:
    return {name: mean_score(values[np.array(groups) == name]) for name in dict.fromkeys(groups)}
