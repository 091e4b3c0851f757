"""Linear classification with a whole grid of classifiers at once."""

import io
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import Dataset

from mm_sop.engine.atomic import write_atomically
from mm_sop.evaluation.cache import content_key, distinct_readouts
from mm_sop.evaluation.cards import describe_source
from mm_sop.evaluation.classification import class_labels, confusion_picture, score_accuracy, test_sets
from mm_sop.evaluation.linear_batches import AugmentedBatches, CachedBatches
from mm_sop.evaluation.linear_grid import SCHEDULES, AdamGrid, HeadSettings, LinearGrid
from mm_sop.evaluation.protocol import PROTOCOLS, EvaluationContext, Protocol, ProtocolResult
from mm_sop.evaluation.sources import class_names, draw_per_class, find_classification
from mm_sop.visualization.evaluation_charts import grid_chart
from mm_sop.visualization.page import Chart

# What the papers' probes on ImageNet have in common.
_PLAIN = dict(choices=('global',), weight_decays=(0.0,), optimizers=('sgd',), schedule='multistep', batch_size=256)
_TEST_BLOCK = 1024
_SAVINGS = 10


@PROTOCOLS.register_module('linear')
@dataclass
class LinearProtocol(Protocol):
    """Linear classifiers for every learning rate, weight decay, optimiser and kind of features, trained in one go.

    The best is picked on pictures that are kept back from the training set; only this one sees the test sets. Learning
    rates are for a batch of 256, except those of Adam, which do not follow the batch.

    Args:
        augment: Whether every epoch encodes random crops and flips of the pictures, as the papers do. Else the cached
            features of the plain pictures are used, in one pass.
        choices: Features; those that the encoder lacks or that coincide are left out.
        learning_rates: Learning rates.
        weight_decays: Weight decays.
        optimizers: ``'sgd'`` and ``'lars'``, or ``'adam'`` alone.
        schedule: Course of the learning rates: ``'cosine'`` to 0, ``'multistep'`` (a tenth after 60 % of the training,
            again after 80 %) or ``'exponential'`` to 1e-4 of the beginning.
        epochs: Passes over the training pictures.
        batch_size: Pictures in a batch of all processes.
        validation: Share of every class that is kept back, rounded, and at least one of its pictures unless it has no
            other.
    """

    version = 3
    presets = dict(
        resa=dict(_PLAIN, learning_rates=(10.0, 40.0)),
        sepp=dict(_PLAIN, learning_rates=(30.0,)),
        # 1.6 for the whole batch.
        co_ssl=dict(_PLAIN, learning_rates=(0.1,), optimizers=('lars',), schedule='cosine', epochs=90, batch_size=4096),
        co_ssl_sgd=dict(_PLAIN, learning_rates=(0.1, 0.3)),
        resa_cifar=dict(
            choices=('global',),
            learning_rates=(0.01,),
            weight_decays=(5e-6,),
            optimizers=('adam',),
            schedule='exponential',
            epochs=500,
            batch_size=1000,
        ),
    )

    augment: bool = False
    choices: Sequence[str] = ('global', 'global+patch', 'last4')
    learning_rates: Sequence[float] = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
    weight_decays: Sequence[float] = (0.0, 1e-6)
    optimizers: Sequence[str] = ('sgd', 'lars')
    schedule: str = 'cosine'
    epochs: int = 100
    batch_size: int = 128
    validation: float = 0.1

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f'linear.schedule must be one of {", ".join(SCHEDULES)}, got {self.schedule!r}')

    @property
    def readouts(self) -> tuple[str, ...]:
        return tuple(self.choices)

    @property
    def heads(self) -> list[HeadSettings]:
        """Settings of the classifiers on each kind of features; learning rates run fastest."""
        settings = itertools.product(self.optimizers, self.weight_decays, self.learning_rates)
        return [HeadSettings(lr, decay, optimizer) for optimizer, decay, lr in settings]

    def find_data(self, context: EvaluationContext) -> dict[str, Dataset]:
        return find_classification(context.data, context.transform)

    def run(self, context: EvaluationContext, data: dict[str, Dataset]) -> ProtocolResult:
        train, labels = data['train'], class_labels(data['train'])
        kept_back = draw_per_class(labels.numpy(), self.validation, np.random.default_rng(context.seed), spare=1)
        if not len(kept_back):
            raise ValueError('every class has a single training picture: none can be kept back to choose a classifier')
        rows = np.setdiff1d(np.arange(len(train)), kept_back)
        choices = distinct_readouts(context.encoder, self.choices, context.transform.crop_size)
        features = {readout: context.features(train, readout) for readout in choices}
        grids = self._build_grids(features, len(class_names(train)), context)
        if self.augment:
            batches = AugmentedBatches(context, train, labels, rows, choices, self.batch_size)
        else:
            batches = CachedBatches(features, labels, rows, self.batch_size, context.seed, context.device)
        self._train(grids, batches, self._state_path(context, train))
        accuracies = {
            readout: _accuracies(grid, features[readout][kept_back], labels[kept_back], context.device)
            for readout, grid in grids.items()
        }
        return self._test(context, data, grids, accuracies)

    def _build_grids(
        self, features: dict[str, Tensor], num_classes: int, context: EvaluationContext
    ) -> dict[str, LinearGrid]:
        generator = torch.Generator().manual_seed(context.seed)
        build = AdamGrid if self._is_adam else LinearGrid
        return {
            readout: build(each.shape[1], num_classes, self.heads, generator=generator, device=context.device)
            for readout, each in features.items()
        }

    @property
    def _is_adam(self) -> bool:
        return set(self.optimizers) == {'adam'}

    def _state_path(self, context: EvaluationContext, train: Dataset) -> Path:
        definition = dict(
            options=asdict(self),
            encoder=context.encoder.identity,
            data=describe_source(train),
            transform=asdict(context.transform),
            dtype=context.cache.dtype,
            seed=context.seed,
            version=self.version,
        )
        return context.work_dir / f'linear_{content_key(definition)}.pth'

    def _train(self, grids: dict[str, LinearGrid], batches: CachedBatches | AugmentedBatches, state: Path) -> None:
        total, scale = self.epochs * len(batches), 1.0 if self._is_adam else self.batch_size / 256
        factor = SCHEDULES[self.schedule]
        for epoch in range(_load_state(state, grids), self.epochs):
            for number, (features, labels) in enumerate(batches(epoch), start=epoch * len(batches)):
                for readout, grid in grids.items():
                    grid.step(features[readout], labels, scale * factor(number, total))
            if (epoch + 1) % max(1, self.epochs // _SAVINGS) == 0:
                _save_state(state, grids, epoch + 1)
                print_log(f'Linear classifiers: epoch {epoch + 1} of {self.epochs}', logger='current')
        barrier()
        if is_main_process():
            state.unlink(missing_ok=True)

    def _test(
        self, context: EvaluationContext, data: dict[str, Dataset], grids: dict, accuracies: dict[str, Tensor]
    ) -> ProtocolResult:
        best = max(accuracies, key=lambda readout: accuracies[readout].max())
        head = int(accuracies[best].argmax())
        scores, pictures = {}, [self._grid_picture(accuracies, best, head)]
        for name, dataset in test_sets(data).items():
            labels = class_labels(dataset).numpy()
            features = context.features(dataset, best)
            logits = [grids[best].logits(part.to(context.device))[:, head] for part in features.split(_TEST_BLOCK)]
            predicted = torch.cat(logits).argmax(1).cpu().numpy()
            scores[f'{name}_class'] = score_accuracy(predicted == labels, dataset, data['train'])
            title = f'Linear classifier, {name}'
            pictures.append(confusion_picture(predicted, labels, dataset, title, f'confusion_{name}'))
        settings = vars(grids[best].heads[head])
        found = dict(
            chosen=dict(readout=best, **settings, validation_accuracy=float(accuracies[best][head])),
            classifiers=sum(len(grid.heads) for grid in grids.values()),
            validation={readout: each.tolist() for readout, each in accuracies.items()},
        )
        return ProtocolResult(scores, found, pictures)

    def _grid_picture(self, accuracies: dict[str, Tensor], best: str, head: int) -> Chart:
        columns = len(self.learning_rates)
        rows = {
            f'{readout}, {optimizer}, decay {decay:g}': part.tolist()
            for readout, each in accuracies.items()
            for (optimizer, decay), part in zip(self._rows(), each.split(columns), strict=True)
        }
        optimizer, decay = self._rows()[head // columns]
        chosen = (f'{best}, {optimizer}, decay {decay:g}', head % columns)
        draw = partial(grid_chart, rows, [f'{lr:g}' for lr in self.learning_rates], chosen)
        batch = 'as they are' if self._is_adam else 'for a batch of 256'
        text = f'Validation accuracy of all linear classifiers; the chosen one is framed. Learning rates {batch}.'
        return Chart.drawn('grid', draw, text)

    def _rows(self) -> list[tuple[str, float]]:
        return list(itertools.product(self.optimizers, self.weight_decays))


def _load_state(path: Path, grids: dict[str, LinearGrid]) -> int:
    """Go on from an interrupted training; number of the epoch to begin with."""
    if not path.is_file():
        return 0
    saved = torch.load(path, map_location='cpu', weights_only=True)
    for readout, grid in grids.items():
        grid.load_state_dict(saved['grids'][readout])
    return saved['epoch']


def _save_state(path: Path, grids: dict[str, LinearGrid], epoch: int) -> None:
    if is_main_process():
        buffer = io.BytesIO()
        torch.save(dict(epoch=epoch, grids={readout: grid.state_dict() for readout, grid in grids.items()}), buffer)
        write_atomically(path, buffer.getvalue())


def _accuracies(grid: LinearGrid, features: Tensor, labels: Tensor, device: torch.device) -> Tensor:
    """Accuracy of every classifier, (H,)."""
    parts = zip(features.split(_TEST_BLOCK), labels.split(_TEST_BLOCK), strict=True)
    correct = torch.cat([grid.correct(part.to(device), truth.to(device)).cpu() for part, truth in parts])
    return correct.double().mean(0)
