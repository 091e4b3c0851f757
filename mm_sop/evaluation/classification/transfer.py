"""Transfer to small classification datasets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS

from mm_sop.datasets.labeled.folders import check_classes
from mm_sop.datasets.transforms.evaluation import EvaluationTransform
from mm_sop.evaluation.classification.common import chart_points
from mm_sop.evaluation.classification.knn import KNNProtocol
from mm_sop.evaluation.classification.linear import LinearProtocol
from mm_sop.evaluation.context import PROTOCOLS, EvaluationContext, MissingDataError, Protocol, ProtocolResult, Score
from mm_sop.evaluation.labeled_data import find_classification

MMPRETRAIN_SETS: dict[str, dict] = {
    'food-101': dict(type='Food101', split=('train', 'test')),
    'Flowers102': dict(type='Flowers102', split=('trainval', 'test'), classes=range(102)),
    'Stanford_Cars': dict(type='StanfordCars', split=('train', 'test')),
    'fgvc-aircraft-2013b': dict(type='FGVCAircraft', split=('trainval', 'test')),
    'dtd': dict(type='DTD', split=('trainval', 'test')),
    'Oxford-IIIT_Pets': dict(type='OxfordIIITPet', split=('trainval', 'test')),
    'caltech-101': dict(type='Caltech101', split=('train', 'test')),
    'SUN397': dict(type='SUN397', split=('train', 'test')),
    'CUB_200_2011': dict(type='CUB', split=('train', 'test')),
}
"""Folders in the documented layout of MMPretrain's dataset of this type; ``classes`` if it has no class names."""

OTHER_SETS = ('cifar10', 'cifar100', 'stl10', '.')
"""Folders in a layout of :func:`find_classification`; ``'.'`` is the data folder itself, under its own name."""


@PROTOCOLS.register_module('transfer')
@dataclass
class TransferProtocol(Protocol):
    """k-NN and linear accuracy on every available classification dataset.

    Both are those of the protocols `knn` and `linear` without augmentation. The accuracy is over images for all
    datasets; some papers average over classes on Flowers, Pets, Aircraft and Caltech.

    Args:
        sets: Folders below the data: of :data:`MMPRETRAIN_SETS`, or in a layout of the protocol `knn`.
        num_neighbors: Neighbors that vote.
        linear_epochs: Passes over the training images of the linear classifiers.
    """

    version = 3
    readouts = tuple(LinearProtocol.choices)  # among them that of k-NN

    sets: Sequence[str] = (*MMPRETRAIN_SETS, *OTHER_SETS)
    num_neighbors: int = 20
    linear_epochs: int = 100

    def find_data(self, context: EvaluationContext) -> dict[str, BaseDataset]:
        found, absent = {}, []
        for name in self.sets:
            try:
                parts = find_set(context.data / name, context.transform)
            except MissingDataError:
                absent.append(name)
            else:
                title = context.data.absolute().name if name == '.' else name
                found.update({f'{title}/{part}': dataset for part, dataset in parts.items()})
        if not found:
            raise MissingDataError(
                f'{context.data} has none of the sets {", ".join(self.sets)}, see docs/evaluation.md'
            )
        print_log(f'transfer: no folder {", ".join(absent)} in {context.data}', 'current')
        return found

    def run(self, context: EvaluationContext, data: dict[str, BaseDataset]) -> ProtocolResult:
        scores: dict[str, Score] = {}
        card, accuracies = {}, {}
        names = list(dict.fromkeys(key.rpartition('/')[0] for key in data))
        for number, name in enumerate(names, start=1):
            parts = {key.rpartition('/')[2]: dataset for key, dataset in data.items() if key.startswith(f'{name}/')}
            context_of_set = replace(context, work_dir=context.work_dir / 'transfer' / name)
            num_neighbors = min(self.num_neighbors, len(parts['train']))
            knn = KNNProtocol(num_neighbors=(num_neighbors,), labels=('class',), fractions=(), shots=())
            for kind, protocol in dict(knn=knn, linear=LinearProtocol(epochs=self.linear_epochs)).items():
                print_log(f'transfer: {name} ({number} of {len(names)}), {kind} ...', 'current')
                result = protocol.run(context_of_set, parts)
                card[f'{name}_{kind}'] = result.card
                for key, score in result.scores.items():
                    part, found, _ = key.partition('_class')
                    if found:
                        scores[f'{name}_{kind}_{part}'] = score
                        accuracies[kind, f'{name} {part}'] = score
        return ProtocolResult(scores, card, dict(accuracies=chart_points(accuracies)))


def find_set(folder: Path, transform: EvaluationTransform) -> dict[str, BaseDataset]:
    """Find ``train`` and test sets in a folder of :data:`MMPRETRAIN_SETS` or :data:`OTHER_SETS`.

    Raises:
        MissingDataError: There is no such dataset.
    """
    known = MMPRETRAIN_SETS.get(folder.name)
    if known is None:
        return find_classification(folder, transform)
    if not folder.is_dir():
        raise MissingDataError(f"{folder} does not exist: expected the layout of MMPretrain's {known['type']}")
    options = dict(type=known['type'], data_root=str(folder), pipeline=transform.steps)
    if 'classes' in known:
        options['metainfo'] = dict(classes=tuple(map(str, known['classes'])))
    parts = zip(('train', 'test'), known['split'], strict=True)
    found = {name: DATASETS.build(dict(options, split=split)) for name, split in parts}
    check_classes(found)
    return found
