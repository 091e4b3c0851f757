"""Video object segmentation on DAVIS 2017 by label propagation."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import default_collate
from mmengine.dist import all_gather_object, get_dist_info
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from mm_sop.datasets.image_files import ImageFiles
from mm_sop.datasets.labeled.davis import VOID, VideoSequence, encode_mask, read_davis, read_mask
from mm_sop.evaluation.context import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult, Score
from mm_sop.evaluation.features.extraction import DTYPES, resize_by
from mm_sop.evaluation.features.identity import content_key
from mm_sop.evaluation.retrieval.rankings import spread_over_quality
from mm_sop.functional.label_propagation import propagate_labels
from mm_sop.functional.segmentation import contour_accuracy, region_similarity
from mm_sop.models.utils.readout import read_out
from mm_sop.utils.files import write_atomically

_PIPELINE = (dict(type='LoadImage'), dict(type='PackInputs'))


@PROTOCOLS.register_module('videoseg')
@dataclass
class VideoSegmentationProtocol(Protocol):
    """Propagation of the object masks of the first frame through a video, by the similarity of local features.

    Follows DINO and iBOT on DAVIS 2017: labels are propagated from the first and the last seven frames, from the five
    most similar positions within twelve rows and columns. Unlike here, their code crops the longer side to a multiple
    of 64. Region similarity J and contour accuracy F are averaged over the frames but the first and the last, then over
    the objects; masks have the size of the annotations. The predicted masks are stored in
    ``videoseg/<key>/<sequence>/`` of the work directory, in DAVIS's format; the key is a hash of
    :attr:`EvaluationContext.setup`.

    Args:
        sets: Folders below the data; the first that exists is evaluated.
        split: Name of the list of sequences.
        short_side: Shorter side of the frames for the network, in pixels. Defaults to None, that of the files (480 in
            DAVIS's 480p).
        multiple: Sides are rounded to multiples of this, as patch sizes and strides require.
        block: Block or stage of the features, counted from the end; 1 is the last.
        context_frames: Previous frames, beside the first, from which labels are propagated.
        num_neighbors: Positions from which a position gets its label.
        radius: Largest distance of these in rows and columns of the local map; None for any.
        temperature: Temperature of the weights.
        strips: Sequences in the gallery.
    """

    sets: Sequence[str] = ('video', 'DAVIS')
    split: str = 'val'
    short_side: int | None = None
    multiple: int = 16
    block: int = 1
    context_frames: int = 7
    num_neighbors: int = 5
    radius: int | None = 12
    temperature: float = 0.1
    strips: int = 4

    def find_data(self, context: EvaluationContext) -> dict[str, Path]:
        """Folder of the videos."""
        expected = f'JPEGImages/480p/, Annotations/480p/ and ImageSets/2017/{self.split}.txt'
        return dict(videos=next(iter(context.find_any(self.sets, expected).values())))

    def run(self, context: EvaluationContext, data: dict[str, Path]) -> ProtocolResult:
        """Segment all sequences, divided among the processes, and score them."""
        sequences = read_davis(data['videos'], self.split)
        rank, world_size = get_dist_info()
        own_sequences, segmented, started = sequences[rank::world_size], {}, time.perf_counter()
        for done, sequence in enumerate(own_sequences, start=1):
            scores = context.part(f'sequences/{sequence.name}', partial(self._evaluate, context, sequence))
            for frame, mask in zip(sequence.frames, scores.pop('masks'), strict=True):
                write_atomically(_prediction_path(context, sequence, frame), encode_mask(mask))
            segmented[sequence.name] = scores
            seconds = (time.perf_counter() - started) / done * (len(own_sequences) - done)
            print_log(f'Segmented {done} of {len(own_sequences)} sequences, {seconds:.0f} s left', logger='current')
        by_name = {name: scores for part in all_gather_object(segmented) for name, scores in part.items()}
        curves = [by_name[sequence.name] for sequence in sequences]
        objects = sum(len(scores['J']) for scores in curves)
        card = dict(sequences=len(sequences), objects=objects, standard_error='over objects')
        return ProtocolResult(summarize_curves(curves), card, dict(sequences=self._shown(context, sequences, curves)))

    def _evaluate(self, context: EvaluationContext, sequence: VideoSequence) -> dict[str, np.ndarray]:
        truth = np.stack([read_mask(path) for path in sequence.masks])
        labels = self._propagate(self._local_maps(context, sequence), truth[0])
        predicted = np.stack([truth[0], *(_to_mask(soft, truth.shape[1:]) for soft in labels)])
        unmoved = np.broadcast_to(np.where(truth[0] == VOID, 0, truth[0]), truth.shape)
        baseline = score_masks(unmoved, truth)
        return dict(score_masks(predicted, truth), unmoved=(baseline['J'] + baseline['F']) / 2, masks=predicted)

    @torch.no_grad()
    def _local_maps(self, context: EvaluationContext, sequence: VideoSequence) -> Iterator[Tensor]:
        """Local features, (D, h, w), frame by frame."""
        encoder, dtype = context.encoder, DTYPES[context.cache.dtype]
        frames = ImageFiles(sequence.frames, _PIPELINE)
        for index in range(len(frames)):
            images = encoder.data_preprocessor(default_collate([frames[index]]), False)['inputs']
            short_side = min(images.shape[2:])
            images = resize_by(images, (self.short_side or short_side) / short_side, self.multiple)
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                maps = read_out(encoder.network, images, self.block).maps
            yield maps[0][0].float()

    def _propagate(self, local_maps: Iterable[Tensor], first_mask: np.ndarray) -> Iterator[Tensor]:
        """Soft labels of all frames but the first, (C, h, w)."""
        local_maps = iter(local_maps)
        local = next(local_maps)
        first = local, _shrink(first_mask, local)
        recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.context_frames)
        for local in local_maps:
            features, labels = (torch.stack(part) for part in zip(first, *recent, strict=True))
            propagated = propagate_labels(local, features, labels, self.num_neighbors, self.radius, self.temperature)
            recent.append((local, propagated))
            yield propagated

    def _shown(
        self, context: EvaluationContext, sequences: Sequence[VideoSequence], curves: Sequence[dict]
    ) -> list[dict]:
        """Files and scores of some sequences, from the best to the worst."""
        qualities = [(scores['J'].mean() + scores['F'].mean()) / 2 for scores in curves]
        return [
            dict(
                name=sequences[index].name,
                frames=list(sequences[index].frames),
                masks=list(sequences[index].masks),
                predicted=[_prediction_path(context, sequences[index], frame) for frame in sequences[index].frames],
                scores=(curves[index]['J'] + curves[index]['F']).mean(0) / 2,
            )
            for index in spread_over_quality(qualities, self.strips)
        ]


def score_masks(predicted: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """``J`` and ``F``, (objects, T - 2), of every object of the first frame in all frames but the first and the last.

    Args:
        predicted: Indices of the objects, uint8, (T, H, W).
        truth: True indices; 255 is void and ignored.

    Raises:
        ValueError: The first frame shows no object.
    """
    objects = [number for number in np.unique(truth[0]) if number not in (0, VOID)]
    if not objects:
        raise ValueError('the first mask of a sequence shows no object: there is nothing to follow')
    inner, true_inner = (torch.from_numpy(np.ascontiguousarray(masks[1:-1])) for masks in (predicted, truth))
    inner = torch.where(true_inner == VOID, 0, inner)
    pairs = [(inner == int(number), true_inner == int(number)) for number in objects]
    return {
        name: np.stack([score(*pair).numpy() for pair in pairs])
        for name, score in dict(J=region_similarity, F=contour_accuracy).items()
    }


def summarize_curves(curves: Sequence[dict[str, np.ndarray]]) -> dict[str, Score]:
    """DAVIS's metrics over the objects of all sequences.

    Recall is the fraction of frames above 0.5, decay the loss from the first to the last quarter of the frames.

    Args:
        curves: ``J``, ``F`` and ``unmoved`` of every sequence, (objects, frames).
    """
    means = {name: [row.mean() for scores in curves for row in scores[name]] for name in ('J', 'F', 'unmoved')}
    scores = {'J&F': _over_objects((np.array(means['J']) + means['F']) / 2)}
    for name in ('J', 'F'):
        rows = [row for sequence in curves for row in sequence[name]]
        scores[name] = _over_objects(means[name])
        scores[f'{name} recall'] = _over_objects([(row > 0.5).mean() for row in rows])
        scores[f'{name} decay'] = _over_objects([_decay(row) for row in rows])
    scores['J&F of the first mask unmoved'] = _over_objects(means['unmoved'])
    return scores


def _over_objects(values: Sequence[float]) -> Score:
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return Score(float(np.mean(values)), error)


def _decay(row: np.ndarray) -> float:
    """First minus last of four bins with common borders, as in DAVIS's evaluation code."""
    borders = np.round(np.linspace(0, len(row) - 1, 5) + 1e-10).astype(int)
    return float(row[: borders[1] + 1].mean() - row[borders[3] :].mean())


def _shrink(mask: np.ndarray, local: Tensor) -> Tensor:
    """One channel for the background and for each object, at the size of the local map, (1 + objects, h, w)."""
    numbers = torch.from_numpy(np.where(mask == VOID, 0, mask)).to(local.device, torch.int64)
    channels = one_hot(numbers).permute(2, 0, 1).float()
    return interpolate(channels[None], local.shape[1:], mode='nearest-exact')[0]


def _to_mask(soft: Tensor, size: Sequence[int]) -> np.ndarray:
    """Index of the most likely object for every pixel; each channel is scaled to [0, 1] first, like in DINO."""
    labels = interpolate(soft[None], size, mode='bilinear', align_corners=False)[0]
    low, high = labels.amin((1, 2), keepdim=True), labels.amax((1, 2), keepdim=True)
    labels = (labels - low) / (high - low).clamp(min=torch.finfo(labels.dtype).tiny)
    return labels.argmax(0).byte().cpu().numpy()


def _prediction_path(context: EvaluationContext, sequence: VideoSequence, frame: Path) -> Path:
    return context.work_dir / 'videoseg' / content_key(context.setup)[:8] / sequence.name / f'{frame.stem}.png'
