"""How much of a classification survives when pictures or representations are disturbed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import ConcatDataset
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import Dataset

from mm_sop.datasets.labelled_images import LabelledImages
from mm_sop.datasets.transforms.corruptions import ALEXNET_ERRORS, CORRUPTIONS, SEVERITIES
from mm_sop.evaluation.classification import class_labels
from mm_sop.evaluation.disturbances import GuidedOcclusion, InternalCorruption, PixelAttack, normalize_pixels
from mm_sop.evaluation.frozen_classifiers import CLASSIFIERS, FrozenClassifiers, map_pictures
from mm_sop.evaluation.knn import read_labels
from mm_sop.evaluation.loading import load
from mm_sop.evaluation.perturbed_data import (
    BACKGROUNDS,
    find_backgrounds,
    find_corrupted,
    match_classes,
    perturb_dataset,
    random_subset,
)
from mm_sop.evaluation.protocol import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult, Score
from mm_sop.evaluation.sources import find_classification
from mm_sop.evaluation.uncertainty import standard_error
from mm_sop.visualization.attention import cls_attention, find_last_attention
from mm_sop.visualization.robustness import perturbation_gallery, robustness_charts

Correct = dict[float | str, dict[str, np.ndarray]]
"""Whether each prediction is right, bool, (tries, N), by level and classifier."""

# Errors of AlexNet are known for the classes of ImageNet alone.
_IMAGENET_CLASSES = 1000


@PROTOCOLS.register_module('robustness')
@dataclass
class RobustnessProtocol(Protocol):
    """Accuracy under disturbances, of classifiers that learnt from undisturbed training pictures.

    - The 15 corruptions of ImageNet-C in 5 severities, read where the set exists, else generated. Of a set in part
      those corruptions are read that are whole; what is missing, of other sets too, is named in the card.
    - Occluded patches (Naseer et al.): random ones, and those to which a transformer attends most, or least.
    - Shuffled patches.
    - Backgrounds of ImageNet-9, and ImageNet-A, where the sets exist.
    - Cells of the last map dropped, or disturbed by noise, before they are pooled (CO-SSL, internal corruption).
    - Projected gradient descent on the pixels (CO-SSL).

    Disturbed pixels meet a k-NN vote and a linear head on the network's own representation. The head alone meets the
    attacks and the patches chosen by attention; internal corruption meets a linear head on the mean of the map.

    Args:
        max_images: Pictures of each test set, drawn at random; None for all.
        num_neighbors: Neighbours that vote.
        penalty: Weight of the penalty of the linear heads.
        imagenet_c: Folder of ImageNet-C below the data.
        imagenet_a: Folder of ImageNet-A below the data.
        backgrounds: Folder of ImageNet-9 below the data.
        guide: Checkpoint of the transformer whose attention says which patches are salient, see :func:`load`; the paper
            takes DINO's ViT-S/16. Defaults to None: the network itself, if it is a transformer with [CLS].
        guide_source: Where that checkpoint comes from, see :func:`load`.
        occluded: Shares of occluded patches.
        shuffled: Rows and columns of shuffled patches.
        dropped: Shares of dropped cells.
        noises: Deviations of the noise in multiples of the map's own.
        repeats: Draws of cells and of noise.
        epsilons: Largest changes of a pixel, of 0 ... 1.
        step_sizes: Steps of the attack as shares of the largest change.
        steps: Numbers of steps of the attack.
    """

    version = 4

    max_images: int | None = None
    num_neighbors: int = 20
    penalty: float = 1e-4
    imagenet_c: str = 'imagenet-c'
    imagenet_a: str = 'imagenet-a'
    backgrounds: str = 'backgrounds'
    guide: str | None = None
    guide_source: str | None = None
    occluded: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9)
    shuffled: Sequence[int] = (2, 4, 8)
    dropped: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9)
    noises: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)
    repeats: int = 3
    epsilons: Sequence[float] = (0.003, 0.01, 0.03, 0.1)
    step_sizes: Sequence[float] = (0.025, 0.1)
    steps: Sequence[int] = (1, 5)

    @property
    def readouts(self) -> tuple[str, ...]:
        return 'global', 'patch'

    def find_data(self, context: EvaluationContext) -> dict[str, Dataset]:
        found = find_classification(context.data, context.transform)
        sets = dict(test=list(found.values())[-1])
        folders = {name: context.data / getattr(self, name) for name in ('imagenet_c', 'imagenet_a', 'backgrounds')}
        if folders['backgrounds'].is_dir():
            sets.update(find_backgrounds(folders['backgrounds'], context.transform))
        if folders['imagenet_a'].is_dir():
            sets['imagenet_a'] = LabelledImages(folders['imagenet_a'], context.transform.steps)
        data = dict(train=found['train'])
        if self.guide is not None and Path(self.guide).exists():
            data['guide'] = Path(self.guide)
        data.update({name: random_subset(each, self.max_images, context.seed) for name, each in sets.items()})
        if folders['imagenet_c'].is_dir():
            for name, severities in find_corrupted(folders['imagenet_c'], context.transform).items():
                data[name] = ConcatDataset([random_subset(each, self.max_images, context.seed) for each in severities])
        return data

    def find_lists(self, context: EvaluationContext) -> dict[str, Path]:
        listing = self._class_listing(context)
        return {listing.name: listing} if listing.is_file() else {}

    def run(self, context: EvaluationContext, data: dict[str, Dataset]) -> ProtocolResult:
        labels = class_labels(data['train'])
        own, pooled = (
            FrozenClassifiers(features.to(context.device), labels, self.num_neighbors, self.penalty)
            for features in (context.features(data['train'], readout) for readout in self.readouts)
        )
        judge = _Judge(context, data, own, self.version)
        correct = dict(clean={0: judge.classify(data['test'], {})})
        correct.update(self._disturb_pixels(judge))
        correct.update(self._swap_sets(judge))
        for name, disturbance in self._disturb_network(context, own, pooled).items():
            print_log(f'Robustness: {name}', logger='current')
            correct.update(judge.disturb(name, disturbance))
        accuracies = {kind: _accuracies(levels) for kind, levels in correct.items()}
        guide = self.guide or 'the network itself'
        card = dict(
            accuracies=accuracies,
            corruptions='read' if _read_corruptions(data) else 'generated',
            missing=self._missing(data),
            guide=guide,
        )
        gallery = perturbation_gallery(data, self.occluded[2:3], self.shuffled[1:2], context.seed)
        return ProtocolResult(self._summarize(correct, data), card, [*robustness_charts(accuracies), gallery])

    def _class_listing(self, context: EvaluationContext) -> Path:
        return context.data / self.backgrounds / 'in_to_in9.json'

    def _missing(self, data: Mapping[str, Dataset]) -> list[str]:
        """Folders below the data that are not there; a set that is missing as a whole is named once."""
        sets = {self.imagenet_c: CORRUPTIONS, self.backgrounds: BACKGROUNDS, self.imagenet_a: ['imagenet_a']}
        missing = []
        for folder, parts in sets.items():
            lacking = [part for part in parts if part not in data]
            missing += [folder] if len(lacking) == len(parts) else [f'{folder}/{part}' for part in lacking]
        return missing

    def _disturb_network(
        self, context: EvaluationContext, own: FrozenClassifiers, pooled: FrozenClassifiers
    ) -> dict[str, Callable]:
        """What looks into the network, by name."""
        encoder, seed = context.encoder, context.seed
        disturbances = {
            'internal corruption': InternalCorruption(encoder, pooled, self.dropped, self.noises, self.repeats, seed),
            'attacks': PixelAttack(encoder, own, self.epsilons, self.step_sizes, self.steps, seed),
        }
        attend = self._find_guide(context)
        if attend is not None:
            disturbances['occlusion by attention'] = GuidedOcclusion(encoder, own, attend, self.occluded)
        return disturbances

    def _find_guide(self, context: EvaluationContext) -> Callable[[Tensor], Tensor] | None:
        """Maps pictures to the guide's attention; None if there is no guide, and the network itself has no [CLS]."""
        if self.guide is not None:
            guide = load(self.guide, source=self.guide_source).to(context.device)
            return lambda pixels: cls_attention(guide.network, guide.prepare(pixels))
        encoder = context.encoder
        if find_last_attention(encoder.network) is None:
            return None
        return lambda pixels: cls_attention(encoder.network, normalize_pixels(encoder, pixels))

    def _disturb_pixels(self, judge: '_Judge') -> dict[str, Correct]:
        corruptions = dict.fromkeys(_read_corruptions(judge.data) or CORRUPTIONS, SEVERITIES)
        kinds = {**corruptions, 'occlusion': self.occluded, 'shuffle': self.shuffled}
        correct = {}
        for number, (kind, levels) in enumerate(kinds.items(), start=1):
            correct[kind] = judge.perturb(kind, levels)
            print_log(f'Robustness: {kind}, {number} of {len(kinds)}', logger='current')
        return correct

    def _swap_sets(self, judge: '_Judge') -> dict[str, Correct]:
        listing, correct = self._class_listing(judge.context), {}
        variants = {name: judge.classify_other(name, listing) for name in BACKGROUNDS if name in judge.data}
        if variants:
            correct['background'] = variants
        if 'imagenet_a' in judge.data:
            correct['imagenet_a'] = {0: judge.classify_other('imagenet_a', restrict=True)}
        return correct

    def _summarize(self, correct: Mapping[str, Correct], data: Mapping[str, Dataset]) -> dict[str, Score]:
        families = dict(corrupted=list(CORRUPTIONS))
        for kind, corruption in CORRUPTIONS.items():
            families.setdefault(corruption.family, []).append(kind)
        # The mean of some corruptions cannot be compared with that of all.
        families = {name: kinds for name, kinds in families.items() if all(kind in correct for kind in kinds)}
        attacks = [kind for kind in correct if kind.startswith('attack_')]
        families.update(dict(attack_average=attacks) if attacks else {})
        single = [kind for kind in correct if kind not in (*CORRUPTIONS, 'clean', 'background')]
        scores = {}
        for name, kinds in dict(clean=['clean'], **families, **{kind: [kind] for kind in single}).items():
            tries = [found for kind in kinds for found in correct[kind].values()]
            scores.update(_mean_scores(name, tries, data.get(kinds[0], data['test'])))
        for variant, found in correct.get('background', {}).items():
            scores.update(_mean_scores(f'background_{variant}', [found], data[variant]))
        for classifier in CLASSIFIERS:
            same, rand = (scores.get(f'background_mixed_{name}_{classifier}') for name in ('same', 'rand'))
            if same and rand:
                scores[f'background_gap_{classifier}'] = Score(same.value - rand.value)
            is_whole = len(_read_corruptions(data)) == len(CORRUPTIONS)
            if is_whole and _num_classes(data['train']) == _IMAGENET_CLASSES:
                scores[f'mce_{classifier}'] = Score(_mean_corruption_error(correct, classifier))
        return scores


class _Judge:
    """Classifies whatever is made of the test pictures."""

    def __init__(
        self, context: EvaluationContext, data: Mapping[str, Dataset], classifiers: FrozenClassifiers, version: int
    ) -> None:
        self.context, self.data, self.classifiers, self.version = context, data, classifiers, version

    def classify(self, dataset: Dataset, made: Mapping, **options) -> dict[str, np.ndarray]:
        """Whether each prediction is right, bool, (1, N), by classifier; ``made`` tells apart pictures of one name."""
        context = self.context
        transform, loading = asdict(context.transform), (context.batch_size, context.num_workers)
        if made:
            transform.update(made, version=self.version)
        features = context.cache.read(context.encoder, dataset, transform, ('global',), *loading)['global']
        predicted = self.classifiers.predict(features.to(context.device), **options)
        truth = torch.from_numpy(read_labels(dataset, 'class'))
        return {name: (each == truth).numpy()[None] for name, each in predicted.items()}

    def perturb(self, kind: str, levels: Sequence[float]) -> Correct:
        """Judge all levels of a corruption, of occlusion or of shuffling, read where it is among the data."""
        dataset = self.data.get(kind)
        if dataset is None:
            dataset = perturb_dataset(self.data['test'], kind, levels, self.context.seed)
            right = self.classify(dataset, dict(perturbation=kind, levels=list(levels), seed=self.context.seed))
        else:
            groups = match_classes(dataset.datasets[0], self.data['train'])
            right = self.classify(dataset, dict(set=kind), groups=groups)
        parts = {name: np.split(each, len(levels), axis=1) for name, each in right.items()}
        return {level: {name: each[row] for name, each in parts.items()} for row, level in enumerate(levels)}

    def classify_other(self, name: str, listing: Path | None = None, restrict: bool = False) -> dict[str, np.ndarray]:
        """Judge a set that may have other classes, see :func:`match_classes`."""
        groups = match_classes(self.data[name], self.data['train'], listing)
        return self.classify(self.data[name], dict(set=name), groups=groups, restrict=restrict)

    def disturb(self, name: str, disturbance: InternalCorruption | PixelAttack) -> dict[str, Correct]:
        """Judge all kinds and levels of what disturbs the network."""
        right = map_pictures(self.context, self.data['test'], disturbance, name)
        correct = {}
        for kind, levels in disturbance.kinds.items():
            tries = right[kind].bool().numpy().T.reshape(-1, len(levels), len(self.data['test']))
            correct[kind] = {level: dict(linear=tries[:, column]) for column, level in enumerate(levels)}
        return correct


def _read_corruptions(data: Mapping[str, Dataset]) -> list[str]:
    """Corruptions that are read from ImageNet-C."""
    return [kind for kind in CORRUPTIONS if kind in data]


def _num_classes(dataset: Dataset) -> int:
    return int(class_labels(dataset).max()) + 1


def _mean_corruption_error(correct: Mapping[str, Correct], classifier: str) -> float:
    """Errors in units of AlexNet's, averaged over the corruptions (Hendrycks and Dietterich, section 4.2)."""
    errors = {
        kind: 1 - np.mean([found[classifier].mean() for found in correct[kind].values()]) for kind in ALEXNET_ERRORS
    }
    return float(np.mean([error / ALEXNET_ERRORS[kind] for kind, error in errors.items()]))


def _accuracies(levels: Correct) -> dict[str, dict[str, float]]:
    return {str(level): {name: float(each.mean()) for name, each in found.items()} for level, found in levels.items()}


def _mean_scores(name: str, tries: Sequence[Mapping[str, np.ndarray]], dataset: Dataset) -> dict[str, Score]:
    """Mean over levels and pictures, with the error over objects, or over pictures where those are unknown."""
    source = dataset.datasets[0] if isinstance(dataset, ConcatDataset) else dataset
    identities, scores = read_labels(source, 'identity'), {}
    for classifier in tries[0]:
        correct = np.concatenate([found[classifier] for found in tries])
        clusters = np.arange(correct.shape[1]) if identities is None else identities
        error = standard_error(correct.ravel(), np.tile(clusters, len(correct)))
        scores[f'{name}_{classifier}'] = Score(float(correct.mean()), error)
    return scores
