"""Robustness: accuracy when images or representations are disturbed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.logging import print_log
from torch import Tensor

from mm_sop.datasets.labeled.folders import LabeledImages
from mm_sop.datasets.transforms.corruptions import ALEXNET_ERRORS, CORRUPTIONS, SEVERITIES
from mm_sop.encoders.encoder import load
from mm_sop.evaluation.classification.logistic import CLASSIFIERS, FrozenClassifiers
from mm_sop.evaluation.context import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult, Score
from mm_sop.evaluation.features.attention import cls_attention, find_last_attention
from mm_sop.evaluation.labeled_data import class_labels, find_classification, random_rows, random_subset, read_labels
from mm_sop.evaluation.robustness.disturbances import GuidedOcclusion, InternalCorruption, PixelAttack, normalize_pixels
from mm_sop.evaluation.robustness.perturbed_data import (
    BACKGROUNDS,
    find_backgrounds,
    find_corrupted,
    match_classes,
    perturb_dataset,
)
from mm_sop.evaluation.standard_errors import standard_error

Correct = dict[float | str, dict[str, np.ndarray]]
"""Whether each prediction is right, bool, (trials, N), by level and classifier."""

# The errors of AlexNet are for the 1000 classes of ImageNet.
_IMAGENET_CLASSES = 1000
# Severity of the corruptions in the gallery.
_SHOWN_SEVERITY = 3


@PROTOCOLS.register_module('robustness')
@dataclass
class RobustnessProtocol(Protocol):
    """Accuracy under disturbances, for classifiers trained on undisturbed images.

    - The 15 corruptions of ImageNet-C in 5 severities: read from the dataset if it exists, else generated. Of an
      incomplete dataset the complete corruptions are read; the card names what is missing, also for the other datasets.
    - Occluded patches (Naseer et al.): random ones, and those to which a transformer attends most, or least.
    - Shuffled patches.
    - Backgrounds of ImageNet-9, and ImageNet-A, if the datasets exist.
    - Cells of the last map dropped, or noise added, before pooling (CO-SSL, internal corruption).
    - Projected gradient descent on the pixels (CO-SSL).

    Disturbed pixels are classified by a k-NN vote and a linear head on the global representation; attacks and patches
    selected by attention by this linear head alone; internal corruption by a linear head on the mean of the map.

    Args:
        max_images: Images of each test set, drawn at random; None for all.
        num_neighbors: Neighbors that vote.
        penalty: Weight of the penalty of the linear heads.
        imagenet_c: Folder of ImageNet-C below the data.
        imagenet_a: Folder of ImageNet-A below the data.
        backgrounds: Folder of ImageNet-9 below the data.
        guide: Checkpoint of the transformer whose attention decides which patches are salient, see :func:`load`; DINO's
            ViT-S/16 in the paper. Defaults to None: the evaluated network, if it is a transformer with [CLS].
        guide_source: Source of that checkpoint, see :func:`load`.
        occluded: Fractions of occluded patches.
        shuffled: Numbers of rows and columns of shuffled patches.
        dropped: Fractions of dropped cells.
        noises: Standard deviations of the noise, relative to that of the map.
        repeats: Draws of cells and of noise.
        epsilons: Largest changes of a pixel, in units of the range 0 ... 1.
        step_sizes: Step sizes of the attack relative to the largest change.
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

    def find_data(self, context: EvaluationContext) -> dict[str, BaseDataset | Path]:
        found = find_classification(context.data, context.transform)
        sets = dict(test=list(found.values())[-1])
        imagenet_c, imagenet_a, backgrounds = (
            context.data / folder for folder in (self.imagenet_c, self.imagenet_a, self.backgrounds)
        )
        if backgrounds.is_dir():
            sets.update(find_backgrounds(backgrounds, context.transform))
        if imagenet_a.is_dir():
            sets['imagenet_a'] = LabeledImages(str(imagenet_a), context.transform.steps)
        data: dict[str, BaseDataset | Path] = dict(train=found['train'])
        if self.guide is not None and Path(self.guide).exists():
            data['guide'] = Path(self.guide)
        data.update({name: random_subset(each, self.max_images, context.seed) for name, each in sets.items()})
        if imagenet_c.is_dir():
            for name, severities in find_corrupted(imagenet_c, context.transform).items():
                data[name] = ConcatDataset([random_subset(each, self.max_images, context.seed) for each in severities])
        return data

    def find_lists(self, context: EvaluationContext) -> dict[str, Path]:
        class_map = self._class_map(context)
        return {class_map.name: class_map} if class_map.is_file() else {}

    def run(self, context: EvaluationContext, data: dict[str, BaseDataset]) -> ProtocolResult:
        labels = class_labels(data['train'])
        on_global, on_patch = (
            FrozenClassifiers(features.to(context.device), labels, self.num_neighbors, self.penalty)
            for features in (context.features(data['train'], readout) for readout in self.readouts)
        )
        judge = _Judge(context, data, on_global, self.version)
        correct: dict[str, Correct] = dict(clean={0: judge.classify(data['test'], {})}, **self._disturb_pixels(judge))
        class_map = self._class_map(context)
        variants: Correct = {name: judge.classify_set(name, class_map) for name in BACKGROUNDS if name in data}
        if variants:
            correct['background'] = variants
        if 'imagenet_a' in data:
            correct['imagenet_a'] = {0: judge.classify_set('imagenet_a', restrict=True)}
        for name, disturbance in self._network_disturbances(context, on_global, on_patch).items():
            print_log(f'Robustness: {name}', logger='current')
            correct.update(judge.disturb(name, disturbance))
        accuracies = {kind: _accuracies(levels) for kind, levels in correct.items()}
        card = dict(
            accuracies=accuracies,
            corruptions='read' if _stored_corruptions(data) else 'generated',
            missing=self._missing(data),
            guide=self.guide or 'the network itself',
        )
        shown = dict(accuracies=accuracies, gallery=self._gallery(data, context.seed))
        return ProtocolResult(self._summarize(correct, data), card, shown)

    def _class_map(self, context: EvaluationContext) -> Path:
        return context.data / self.backgrounds / 'in_to_in9.json'

    def _missing(self, data: Mapping[str, BaseDataset]) -> list[str]:
        """Missing folders below the data; a dataset that is missing as a whole is named once."""
        sets = {self.imagenet_c: CORRUPTIONS, self.backgrounds: BACKGROUNDS, self.imagenet_a: ['imagenet_a']}
        missing = []
        for folder, parts in sets.items():
            lacking = [part for part in parts if part not in data]
            missing += [folder] if len(lacking) == len(parts) else [f'{folder}/{part}' for part in lacking]
        return missing

    def _network_disturbances(
        self, context: EvaluationContext, on_global: FrozenClassifiers, on_patch: FrozenClassifiers
    ) -> dict[str, InternalCorruption | PixelAttack | GuidedOcclusion]:
        """Disturbances that depend on the network, by name."""
        encoder, seed = context.encoder, context.seed
        disturbances: dict[str, InternalCorruption | PixelAttack | GuidedOcclusion] = {
            'internal corruption': InternalCorruption(encoder, on_patch, self.dropped, self.noises, self.repeats, seed),
            'attacks': PixelAttack(encoder, on_global, self.epsilons, self.step_sizes, self.steps, seed),
        }
        attend = self._find_guide(context)
        if attend is not None:
            disturbances['occlusion by attention'] = GuidedOcclusion(encoder, on_global, attend, self.occluded)
        return disturbances

    def _find_guide(self, context: EvaluationContext) -> Callable[[Tensor], Tensor] | None:
        """Function from images to the guide's attention; None if the network has no [CLS] and there is no guide."""
        if self.guide is not None:
            guide = load(self.guide, source=self.guide_source).to(context.device)
            return lambda pixels: cls_attention(guide.network, guide.prepare(pixels))
        encoder = context.encoder
        if find_last_attention(encoder.network) is None:
            return None
        return lambda pixels: cls_attention(encoder.network, normalize_pixels(encoder, pixels))

    def _disturb_pixels(self, judge: '_Judge') -> dict[str, Correct]:
        corruptions = dict.fromkeys(_stored_corruptions(judge.data) or CORRUPTIONS, SEVERITIES)
        kinds: dict[str, Sequence[float]] = {**corruptions, 'occlusion': self.occluded, 'shuffle': self.shuffled}
        correct = {}
        for number, (kind, levels) in enumerate(kinds.items(), start=1):
            correct[kind] = judge.perturb(kind, levels)
            print_log(f'Robustness: {kind}, {number} of {len(kinds)}', logger='current')
        return correct

    def _summarize(self, correct: Mapping[str, Correct], data: Mapping[str, BaseDataset]) -> dict[str, Score]:
        families = dict(corrupted=list(CORRUPTIONS))
        for kind, corruption in CORRUPTIONS.items():
            families.setdefault(corruption.family, []).append(kind)
        # The mean of some corruptions is not comparable with that of all.
        groups = {name: kinds for name, kinds in families.items() if all(kind in correct for kind in kinds)}
        if attacks := [kind for kind in correct if kind.startswith('attack_')]:
            groups['attack_average'] = attacks
        single = [kind for kind in correct if kind not in (*CORRUPTIONS, 'clean', 'background')]
        scores: dict[str, Score] = {}
        for name, kinds in dict(clean=['clean'], **groups, **{kind: [kind] for kind in single}).items():
            trials = [level for kind in kinds for level in correct[kind].values()]
            scores.update(_mean_scores(name, trials, data.get(kinds[0], data['test'])))
        for variant, right in correct.get('background', {}).items():
            scores.update(_mean_scores(f'background_{variant}', [right], data[str(variant)]))
        for classifier in CLASSIFIERS:
            same, rand = (scores.get(f'background_mixed_{name}_{classifier}') for name in ('same', 'rand'))
            if same and rand:
                scores[f'background_gap_{classifier}'] = Score(same.value - rand.value)
            is_complete = len(_stored_corruptions(data)) == len(CORRUPTIONS)
            if is_complete and int(class_labels(data['train']).max()) + 1 == _IMAGENET_CLASSES:
                scores[f'mce_{classifier}'] = Score(_mean_corruption_error(correct, classifier))
        return scores

    def _gallery(self, data: Mapping[str, BaseDataset], seed: int) -> list[list[dict]]:
        """A test image with every corruption, occluded and shuffled; and a random one on all backgrounds."""
        row = int(random_rows(len(data['test']), 1, seed)[0])
        tiles = [_tile('clean', data['test'], row)]
        levels: dict[str, Sequence[float]] = dict.fromkeys(CORRUPTIONS, (_SHOWN_SEVERITY,))
        levels.update(occlusion=self.occluded[2:3], shuffle=self.shuffled[1:2])
        for kind, shown in levels.items():
            # Perturbed here even if the corruption is read, as the stored dataset may lack this image.
            tiles += [_tile(kind, perturb_dataset(data['test'], kind, [level], seed), row) for level in shown]
        rows = [tiles[start : start + 6] for start in range(0, len(tiles), 6)]
        variants = [name for name in BACKGROUNDS if name in data]
        if variants:
            row = int(random_rows(min(len(data[name]) for name in variants), 1, seed)[0])
            rows.append([_tile(name, data[name], row) for name in variants])
        return rows


class _Judge:
    """Classifies disturbed versions of the test images."""

    def __init__(
        self, context: EvaluationContext, data: Mapping[str, BaseDataset], classifiers: FrozenClassifiers, version: int
    ) -> None:
        self.context, self.data, self.classifiers, self.version = context, data, classifiers, version

    def classify(self, dataset: BaseDataset, disturbance: Mapping, **options) -> dict[str, np.ndarray]:
        """Whether each prediction is right, bool, (1, N), by classifier.

        The disturbance is what distinguishes images of the same names in the cache; the options are those of
        :meth:`FrozenClassifiers.predict`.
        """
        context = self.context
        transform, loading = asdict(context.transform), (context.batch_size, context.num_workers)
        if disturbance:
            transform.update(disturbance, version=self.version)
        features = context.cache.read(context.encoder, dataset, transform, ('global',), *loading)['global']
        predicted = self.classifiers.predict(features.to(context.device), **options)
        truth = class_labels(dataset)
        return {name: (each == truth).numpy()[None] for name, each in predicted.items()}

    def perturb(self, kind: str, levels: Sequence[float]) -> Correct:
        """Classify all levels of a corruption, of occlusion or of shuffling; stored images are used if they exist."""
        dataset = self.data.get(kind)
        if dataset is None:
            dataset = perturb_dataset(self.data['test'], kind, levels, self.context.seed)
            right = self.classify(dataset, dict(perturbation=kind, levels=list(levels), seed=self.context.seed))
        else:
            groups = match_classes(dataset.datasets[0], self.data['train'])
            right = self.classify(dataset, dict(set=kind), groups=groups)
        by_level = {name: np.split(each, len(levels), axis=1) for name, each in right.items()}
        return {level: {name: each[row] for name, each in by_level.items()} for row, level in enumerate(levels)}

    def classify_set(self, name: str, class_map: Path | None = None, restrict: bool = False) -> dict[str, np.ndarray]:
        """Classify a dataset that may have other classes, see :func:`match_classes`."""
        groups = match_classes(self.data[name], self.data['train'], class_map)
        return self.classify(self.data[name], dict(set=name), groups=groups, restrict=restrict)

    def disturb(self, name: str, disturbance: InternalCorruption | PixelAttack | GuidedOcclusion) -> dict[str, Correct]:
        """Classify all kinds and levels of a disturbance that depends on the network."""
        right = self.context.map_images(self.data['test'], disturbance, name)
        correct: dict[str, Correct] = {}
        for kind, levels in disturbance.kinds.items():
            # (N, trials levels) -> (trials, levels, N)
            trials = right[kind].bool().numpy().T.reshape(-1, len(levels), len(self.data['test']))
            correct[kind] = {level: dict(linear=trials[:, column]) for column, level in enumerate(levels)}
        return correct


def _stored_corruptions(data: Mapping[str, BaseDataset]) -> list[str]:
    """Corruptions that are read from ImageNet-C."""
    return [kind for kind in CORRUPTIONS if kind in data]


def _tile(name: str, dataset: BaseDataset, row: int) -> dict:
    return dict(caption=name.replace('_', ' '), image=dataset[row]['inputs'].numpy())


def _mean_corruption_error(correct: Mapping[str, Correct], classifier: str) -> float:
    """Errors relative to AlexNet's, averaged over the corruptions (Hendrycks and Dietterich, section 4.2)."""
    errors = {
        kind: 1 - np.mean([right[classifier].mean() for right in correct[kind].values()]) for kind in ALEXNET_ERRORS
    }
    return float(np.mean([error / ALEXNET_ERRORS[kind] for kind, error in errors.items()]))


def _accuracies(levels: Correct) -> dict[str, dict[str, float]]:
    return {str(level): {name: float(each.mean()) for name, each in right.items()} for level, right in levels.items()}


def _mean_scores(name: str, trials: Sequence[Mapping[str, np.ndarray]], dataset: BaseDataset) -> dict[str, Score]:
    """Mean over levels and images, with the error over objects if they are known, else over images."""
    source = dataset.datasets[0] if isinstance(dataset, ConcatDataset) else dataset
    identities, scores = read_labels(source, 'identity'), {}
    for classifier in trials[0]:
        correct = np.concatenate([right[classifier] for right in trials])
        clusters = np.arange(correct.shape[1]) if identities is None else identities
        error = standard_error(correct.ravel(), np.tile(clusters, len(correct)))
        scores[f'{name}_{classifier}'] = Score(float(correct.mean()), error)
    return scores
