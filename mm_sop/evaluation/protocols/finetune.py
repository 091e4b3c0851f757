"""Fine-tuning of the whole network."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import get_dist_info
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils.data import Dataset

from mm_sop.evaluation.cache import content_key
from mm_sop.evaluation.cards import describe_source
from mm_sop.evaluation.classification import (
    class_labels,
    confusion_picture,
    describe_subsets,
    label_subsets,
    score_accuracy,
    test_sets,
)
from mm_sop.evaluation.features import evaluation_mode, extract_features, gather_features
from mm_sop.evaluation.finetuning import FinetuneSettings, build_classifier, finetune
from mm_sop.evaluation.linear_batches import augmented
from mm_sop.evaluation.protocol import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult
from mm_sop.evaluation.sources import class_names, find_classification, find_subset_lists
from mm_sop.visualization.evaluation_charts import scores_chart
from mm_sop.visualization.page import Chart


@PROTOCOLS.register_module('finetune')
@dataclass
class FinetuneProtocol(FinetuneSettings, Protocol):
    """Accuracy after all layers were trained with labels: with all of them, and semi-supervised with few.

    MMPretrain's ``ImageClassifier``, trained by a Runner with AdamW, layer-wise learning rates, mixup and CutMix. The
    defaults are for small sets; the recipes of the papers on ImageNet are in ``configs/finetune``. An interrupted
    training goes on.

    Args:
        shares: Shares of the labels: 1 for all; 0.01 and 0.1 are SimCLR's lists where they lie with the data.
    """

    version = 2

    shares: Sequence[float] = (1, 0.1, 0.01)

    @property
    def readouts(self) -> tuple[str, ...]:
        return ('global',)

    def find_data(self, context: EvaluationContext) -> dict[str, Dataset]:
        return find_classification(context.data, context.transform)

    def find_lists(self, context: EvaluationContext) -> dict[str, Path]:
        return find_subset_lists(context.data)

    def run(self, context: EvaluationContext, data: dict[str, Dataset]) -> ProtocolResult:
        if len(class_names(data['train'])) < 2:
            raise ValueError(f'fine-tuning needs at least two classes, {context.data} has one')
        few = label_subsets(context, data['train'], [share for share in self.shares if share < 1], (), tries=1)
        subsets = dict({'100%': [np.arange(len(data['train']))]} if 1 in self.shares else {}, **few)
        scores, pictures, lines = {}, [], {}
        for subset, (rows,) in subsets.items():
            print_log(f'Fine-tuning with {subset} of the labels, {len(rows)} pictures ...', 'current')
            classifier = self._train(context, data['train'], rows, subset)
            for name, dataset in test_sets(data).items():
                predicted, labels = _predict(context, classifier, dataset), class_labels(dataset).numpy()
                score = score_accuracy(predicted == labels, dataset, data['train'])
                scores[f'{name}_class' + ('' if subset == '100%' else f'_{subset}')] = score
                lines.setdefault(name, {})[subset] = (score.value, score.error)
                if subset == '100%':
                    title = f'Fine-tuned, {name}'
                    pictures.append(confusion_picture(predicted, labels, dataset, title, f'confusion_{name}'))
        card = dict(subsets=describe_subsets(context, few))
        return ProtocolResult(scores, card, [*pictures, _labels_picture(lines)])

    def _train(self, context: EvaluationContext, train: BaseDataset, rows: np.ndarray, subset: str) -> nn.Module:
        dim, num_classes = context.features(train).shape[1], len(class_names(train))
        torch.manual_seed(context.seed)
        classifier = build_classifier(context.encoder, dim, num_classes, self)
        data, transform = describe_source(train), asdict(context.transform)
        definition = dict(options=vars(self), encoder=context.encoder.identity, seed=context.seed, labels=subset)
        definition.update(data=data, rows=rows.tolist(), transform=transform, version=self.version)
        work_dir = context.work_dir / 'finetune' / f'finetune_{content_key(definition)}'
        views = augmented(train.get_subset(rows.tolist()), context.transform)
        return finetune(classifier, views, self, work_dir, context.seed, context.num_workers)


def _predict(context: EvaluationContext, classifier: nn.Module, dataset: Dataset) -> np.ndarray:
    rank, world_size = get_dist_info()
    loading = dict(batch_size=context.batch_size, num_workers=context.num_workers)
    with evaluation_mode(classifier):
        share = extract_features(_logits(classifier), dataset, rank=rank, world_size=world_size, **loading)
    return gather_features(share['logits'], len(dataset)).argmax(1).cpu().numpy()


def _logits(classifier: nn.Module) -> Callable[[dict], dict[str, Tensor]]:
    def encode(batch: dict) -> dict[str, Tensor]:
        return dict(logits=classifier(classifier.data_preprocessor(batch, False)['inputs'], mode='tensor').float())

    return encode


def _labels_picture(lines: dict[str, dict[str, tuple]]) -> Chart:
    rising = {
        name: dict(sorted(points.items(), key=lambda point: float(point[0].rstrip('%'))))
        for name, points in lines.items()
    }
    draw = partial(scores_chart, {'Fine-tuning': rising}, 'labels')
    return Chart.drawn('labels', draw, 'Accuracy after fine-tuning by the share of the labels.')
