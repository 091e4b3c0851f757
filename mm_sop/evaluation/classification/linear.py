"""Linear classification: a grid of classifiers, trained together."""

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset, default_collate
from mmengine.dist import barrier, get_dist_info, is_main_process
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import DataLoader

from mm_sop.datasets.seeded import SampleKey, SeededDataset
from mm_sop.datasets.worker import pretrain_worker_init
from mm_sop.evaluation.classification.common import ClassificationProtocol, confusion, score_accuracy
from mm_sop.evaluation.classification.linear_grid import SCHEDULES, AdamGrid, HeadSettings, LinearGrid
from mm_sop.evaluation.context import PROTOCOLS, EvaluationContext, ProtocolResult
from mm_sop.evaluation.features.cards import describe_source
from mm_sop.evaluation.features.identity import content_key
from mm_sop.evaluation.features.readouts import DTYPES, READOUTS, arrays_of, distinct_readouts, encode_arrays
from mm_sop.evaluation.labeled_data import (
    class_labels,
    class_names,
    draw_per_class,
    random_views,
    test_sets,
)
from mm_sop.utils.distributed import gather_in_sample_order
from mm_sop.utils.files import write_atomically

Batches = Iterator[tuple[dict[str, Tensor], Tensor]]
"""Features by readout and labels, batch by batch, on the encoder's device and equal on all processes."""

# The common settings of the papers' probes on ImageNet.
_PLAIN = dict(choices=('global',), weight_decays=(0.0,), optimizers=('sgd',), schedule='multistep', batch_size=256)
_TEST_BLOCK = 1024
_NUM_CHECKPOINTS = 10


@PROTOCOLS.register_module('linear')
@dataclass
class LinearProtocol(ClassificationProtocol):
    """Linear classifiers for every learning rate, weight decay, optimizer and readout, trained together.

    The best is selected on validation images held out of the training set; only this one is tested. Learning rates are
    for a batch of 256 and scaled linearly, except those of Adam.

    Args:
        augment: Whether every epoch encodes random crops and flips of the images, like the papers. Otherwise the cached
            features of the plain images are used, and every image is encoded once.
        choices: Readouts; those that the encoder lacks and duplicates are left out.
        learning_rates: Learning rates.
        weight_decays: Weight decays.
        optimizers: ``'sgd'`` and ``'lars'``, or ``'adam'`` alone.
        schedule: Schedule of the learning rates: ``'cosine'`` to 0, ``'multistep'`` (times 0.1 after 60 % of the
            training and again after 80 %) or ``'exponential'`` to 1e-4 times the initial one.
        epochs: Passes over the training images.
        batch_size: Images in a batch over all processes.
        validation: Fraction of every class that is held out, rounded, at least one image unless the class has no other.
    """

    version = 3
    presets = dict(
        resa=dict(_PLAIN, learning_rates=(10.0, 40.0)),
        sepp=dict(_PLAIN, learning_rates=(30.0,)),
        # 0.1 * 4096 / 256 = 1.6 for the whole batch.
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
        """Settings of the classifiers on each readout; the learning rate varies fastest."""
        settings = itertools.product(self.optimizers, self.weight_decays, self.learning_rates)
        return [HeadSettings(lr, decay, optimizer) for optimizer, decay, lr in settings]

    @property
    def _is_adam(self) -> bool:
        return set(self.optimizers) == {'adam'}

    def run(self, context: EvaluationContext, data: dict[str, BaseDataset]) -> ProtocolResult:
        train, labels = data['train'], class_labels(data['train'])
        held_out = draw_per_class(labels.numpy(), self.validation, np.random.default_rng(context.seed), spare=1)
        if not len(held_out):
            raise ValueError('every class has a single training image: none can be kept back to choose a classifier')
        rows = np.setdiff1d(np.arange(len(train)), held_out)
        choices = distinct_readouts(context.encoder, self.choices, context.transform.crop_size)
        features = {readout: context.features(train, readout) for readout in choices}
        grids = self._build_grids(features, len(class_names(train)), context)
        batches: CachedBatches | AugmentedBatches
        if self.augment:
            batches = AugmentedBatches(context, train, labels, rows, choices, self.batch_size)
        else:
            batches = CachedBatches(features, labels, rows, self.batch_size, context.seed, context.device)
        self._train(grids, batches, self._state_path(context, train))
        accuracies = {
            readout: _accuracies(grid, features[readout][held_out], labels[held_out], context.device)
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

    def _state_path(self, context: EvaluationContext, train: BaseDataset) -> Path:
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

    def _train(self, grids: dict[str, LinearGrid], batches: 'CachedBatches | AugmentedBatches', state: Path) -> None:
        total, scale = self.epochs * len(batches), 1.0 if self._is_adam else self.batch_size / 256
        factor = SCHEDULES[self.schedule]
        for epoch in range(_load_state(state, grids), self.epochs):
            for step, (features, labels) in enumerate(batches(epoch), start=epoch * len(batches)):
                for readout, grid in grids.items():
                    grid.step(features[readout], labels, scale * factor(step, total))
            if (epoch + 1) % max(1, self.epochs // _NUM_CHECKPOINTS) == 0:
                _save_state(state, grids, epoch + 1)
                print_log(f'Linear classifiers: epoch {epoch + 1} of {self.epochs}', logger='current')
        barrier()
        if is_main_process():
            state.unlink(missing_ok=True)

    def _test(
        self,
        context: EvaluationContext,
        data: dict[str, BaseDataset],
        grids: dict[str, LinearGrid],
        accuracies: dict[str, Tensor],
    ) -> ProtocolResult:
        best = max(accuracies, key=lambda readout: accuracies[readout].max())
        head = int(accuracies[best].argmax())
        scores, confusions = {}, {}
        for name, dataset in test_sets(data).items():
            labels = class_labels(dataset).numpy()
            features = context.features(dataset, best)
            logits = [grids[best].logits(block.to(context.device))[:, head] for block in features.split(_TEST_BLOCK)]
            predicted = torch.cat(logits).argmax(1).cpu().numpy()
            scores[f'{name}_class'] = score_accuracy(predicted == labels, dataset, data['train'])
            confusions[name] = confusion(predicted, labels, dataset, f'Linear classifier, {name}')
        settings = vars(grids[best].heads[head])
        card = dict(
            chosen=dict(readout=best, **settings, validation_accuracy=float(accuracies[best][head])),
            classifiers=sum(len(grid.heads) for grid in grids.values()),
            validation={readout: each.tolist() for readout, each in accuracies.items()},
        )
        return ProtocolResult(scores, card, dict(grid=self._grid(accuracies, best, head), confusion=confusions))

    def _grid(self, accuracies: dict[str, Tensor], best: str, head: int) -> dict:
        """Validation accuracies by row and learning rate, and which classifier was selected."""
        columns = len(self.learning_rates)
        kinds = list(itertools.product(self.optimizers, self.weight_decays))
        rows = {
            f'{readout}, {optimizer}, decay {decay:g}': part.tolist()
            for readout, each in accuracies.items()
            for (optimizer, decay), part in zip(kinds, each.split(columns), strict=True)
        }
        optimizer, decay = kinds[head // columns]
        selected = (f'{best}, {optimizer}, decay {decay:g}', head % columns)
        columns_text = [f'{lr:g}' for lr in self.learning_rates]
        return dict(rows=rows, columns=columns_text, selected=selected, scaled_by_batch=not self._is_adam)


def _load_state(path: Path, grids: dict[str, LinearGrid]) -> int:
    """Resume an interrupted training; returns the number of finished epochs."""
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
    blocks = zip(features.split(_TEST_BLOCK), labels.split(_TEST_BLOCK), strict=True)
    correct = torch.cat([grid.correct(block.to(device), truth.to(device)).cpu() for block, truth in blocks])
    return correct.double().mean(0)


class CachedBatches:
    """Shuffled batches of extracted features.

    Args:
        features: Features of all images by readout, (N, D).
        labels: Classes, (N,).
        rows: Training rows.
        size: Images in a batch; the last batch of an epoch may be smaller.
        seed: Seed of the order.
        device: Device of the batches.
    """

    def __init__(
        self,
        features: dict[str, Tensor],
        labels: Tensor,
        rows: np.ndarray,
        size: int,
        seed: int = 0,
        device: torch.device | str = 'cpu',
    ) -> None:
        self.features = {readout: each[rows].to(device) for readout, each in features.items()}
        self.labels = labels[rows].to(device)
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.size)

    def __call__(self, epoch: int) -> Batches:
        """Batches of an epoch."""
        order = torch.from_numpy(_order(len(self.labels), self.seed, epoch)).to(self.labels.device)
        for rows in order.split(self.size):
            yield {readout: each[rows] for readout, each in self.features.items()}, self.labels[rows]


class AugmentedBatches:
    """Shuffled batches of random crops and flips, encoded by all processes together.

    Args:
        context: Encoder and settings.
        dataset: Images, of which each epoch draws new views.
        labels: Classes, (N,).
        rows: Training rows.
        readouts: Readouts to encode.
        size: Images in a batch over all processes; an incomplete batch is dropped.

    Raises:
        ValueError: A batch cannot be divided equally among the processes, or there are fewer images.
    """

    def __init__(
        self,
        context: EvaluationContext,
        dataset: BaseDataset,
        labels: Tensor,
        rows: np.ndarray,
        readouts: Sequence[str],
        size: int,
    ) -> None:
        _, world_size = get_dist_info()
        if size % world_size or size > len(rows):
            raise ValueError(
                f'batch_size={size} must be a multiple of the {world_size} processes and at most the {len(rows)} '
                'images for training'
            )
        self.dataset = SeededDataset(random_views(dataset, context.transform), context.seed)
        self.context = context
        self.labels = labels.to(context.device)
        self.rows = rows
        self.readouts = readouts
        self.size = size

    def __len__(self) -> int:
        return len(self.rows) // self.size

    def __call__(self, epoch: int) -> Batches:
        """Batches of an epoch."""
        rank, world_size = get_dist_info()
        order = self.rows[_order(len(self.rows), self.context.seed, epoch)]
        batches = order[: len(self) * self.size].reshape(-1, self.size)
        keys = [[SampleKey(epoch, row) for row in batch] for batch in batches[:, rank::world_size].tolist()]
        loader = DataLoader(
            self.dataset,
            batch_sampler=keys,
            num_workers=self.context.num_workers,
            collate_fn=default_collate,
            worker_init_fn=pretrain_worker_init,
            generator=torch.Generator(),
        )
        for rows, batch in zip(batches, loader, strict=True):
            yield self._encode(batch), self.labels[torch.from_numpy(rows)]

    @torch.no_grad()
    def _encode(self, batch: dict) -> dict[str, Tensor]:
        encoded = encode_arrays(self.context.encoder, arrays_of(self.readouts), DTYPES[self.context.cache.dtype], batch)
        arrays = {name: gather_in_sample_order(each.to(self.context.device)) for name, each in encoded.items()}
        return {readout: torch.cat([arrays[name] for name in READOUTS[readout]], 1) for readout in self.readouts}


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
