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
from mm_sop.evaluation.features.extraction import DTYPES, READOUTS, arrays_of, distinct_readouts, encode_arrays
from mm_sop.evaluation.features.identity import content_key, describe_source
from mm_sop.evaluation.labeled_data import class_labels, class_names, draw_per_class, random_views, test_sets
from mm_sop.utils.distributed import gather_in_sample_order
from mm_sop.utils.files import write_atomically

Batches = Iterator[tuple[dict[str, Tensor], Tensor]]
"""Features by readout and labels, batch by batch, on the encoder's device and equal on all processes."""

# The common settings of the papers' probes on ImageNet, and those of ReSA's on CIFAR.
_PLAIN = dict(choices=('global',), weight_decays=(0.0,), optimizers=('sgd',), schedule='multistep', batch_size=256)
_CIFAR = dict(choices=('global',), weight_decays=(5e-6,), optimizers=('adam',), schedule='exponential', batch_size=1000)
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
        resa_cifar=dict(_CIFAR, learning_rates=(0.01,), epochs=500),
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
        build, num_classes = AdamGrid if self._is_adam else LinearGrid, len(class_names(train))
        options: dict = dict(generator=torch.Generator().manual_seed(context.seed), device=context.device)
        grids = {name: build(each.shape[1], num_classes, self.heads, **options) for name, each in features.items()}
        batches: CachedBatches | AugmentedBatches
        if self.augment:
            batches = AugmentedBatches(context, train, labels, rows, choices, self.batch_size)
        else:
            train_features = {readout: each[rows].to(context.device) for readout, each in features.items()}
            batches = CachedBatches(train_features, labels[rows].to(context.device), self.batch_size, context.seed)
        self._train(grids, batches, self._state_path(context, train))
        accuracies = {
            readout: _accuracies(grid, features[readout][held_out], labels[held_out], context.device)
            for readout, grid in grids.items()
        }
        return self._test(context, data, grids, accuracies)

    def _state_path(self, context: EvaluationContext, train: BaseDataset) -> Path:
        data, transform = describe_source(train), asdict(context.transform)
        settings = dict(transform=transform, dtype=context.cache.dtype, seed=context.seed, version=self.version)
        definition = dict(settings, options=asdict(self), encoder=context.encoder.identity, data=data)
        return context.work_dir / f'linear_{content_key(definition)}.pth'

    def _train(self, grids: dict[str, LinearGrid], batches: 'CachedBatches | AugmentedBatches', path: Path) -> None:
        """Train all classifiers, from the last state in ``path`` if an earlier training was interrupted."""
        total, scale = self.epochs * len(batches), 1.0 if self._is_adam else self.batch_size / 256
        factor, finished = SCHEDULES[self.schedule], 0
        if path.is_file():
            saved = torch.load(path, map_location='cpu', weights_only=True)
            finished = saved['epoch']
            for readout, grid in grids.items():
                grid.load_state_dict(saved['grids'][readout])
        for epoch in range(finished, self.epochs):
            for step, (features, labels) in enumerate(batches(epoch), start=epoch * len(batches)):
                for readout, grid in grids.items():
                    grid.step(features[readout], labels, scale * factor(step, total))
            if (epoch + 1) % max(1, self.epochs // _NUM_CHECKPOINTS) == 0:
                if is_main_process():
                    state = dict(epoch=epoch + 1, grids={readout: grid.state_dict() for readout, grid in grids.items()})
                    buffer = io.BytesIO()
                    torch.save(state, buffer)
                    write_atomically(path, buffer.getvalue())
                print_log(f'Linear classifiers: epoch {epoch + 1} of {self.epochs}', logger='current')
        barrier()
        if is_main_process():
            path.unlink(missing_ok=True)

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
        # Validation accuracies: a row for each optimizer and weight decay, a column for each learning rate.
        columns = len(self.learning_rates)
        kinds = [f'{name}, decay {decay:g}' for name in self.optimizers for decay in self.weight_decays]
        rows = {
            f'{readout}, {kind}': part.tolist()
            for readout, each in accuracies.items()
            for kind, part in zip(kinds, each.split(columns), strict=True)
        }
        selected = (f'{best}, {kinds[head // columns]}', head % columns)
        rates = [f'{lr:g}' for lr in self.learning_rates]
        grid = dict(rows=rows, columns=rates, selected=selected, scaled_by_batch=not self._is_adam)
        settings = vars(grids[best].heads[head])
        card = dict(
            chosen=dict(readout=best, **settings, validation_accuracy=float(accuracies[best][head])),
            classifiers=len(grids) * len(self.heads),
            validation={readout: each.tolist() for readout, each in accuracies.items()},
        )
        return ProtocolResult(scores, card, dict(grid=grid, confusion=confusions))


def _accuracies(grid: LinearGrid, features: Tensor, labels: Tensor, device: torch.device) -> Tensor:
    """Accuracy of every classifier, (H,)."""
    blocks = zip(features.split(_TEST_BLOCK), labels.split(_TEST_BLOCK), strict=True)
    correct = torch.cat([grid.correct(block.to(device), truth.to(device)).cpu() for block, truth in blocks])
    return correct.double().mean(0)


@dataclass
class CachedBatches:
    """Shuffled batches of extracted features, (N, D) by readout; the last one of an epoch may be smaller."""

    features: dict[str, Tensor]
    labels: Tensor
    size: int
    seed: int

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.size)

    def __call__(self, epoch: int) -> Batches:
        """Batches of an epoch."""
        order = torch.from_numpy(_order(len(self.labels), self.seed, epoch)).to(self.labels.device)
        for rows in order.split(self.size):
            yield {readout: each[rows] for readout, each in self.features.items()}, self.labels[rows]


@dataclass
class AugmentedBatches:
    """Shuffled batches of random crops and flips, encoded by all processes together; an incomplete one is dropped.

    Attributes:
        dataset: Images, of which each epoch draws new views.
        labels: Classes of all images, (N,).
        rows: Training rows.
        size: Images in a batch over all processes.

    Raises:
        ValueError: A batch cannot be divided equally among the processes, or there are fewer images.
    """

    context: EvaluationContext
    dataset: BaseDataset
    labels: Tensor
    rows: np.ndarray
    readouts: Sequence[str]
    size: int

    def __post_init__(self) -> None:
        _, world_size = get_dist_info()
        if self.size % world_size or self.size > len(self.rows):
            raise ValueError(
                f'batch_size={self.size} must be a multiple of the {world_size} processes and at most the '
                f'{len(self.rows)} images for training'
            )
        self.views = SeededDataset(random_views(self.dataset, self.context.transform), self.context.seed)

    def __len__(self) -> int:
        return len(self.rows) // self.size

    def __call__(self, epoch: int) -> Batches:
        """Batches of an epoch."""
        rank, world_size = get_dist_info()
        order = self.rows[_order(len(self.rows), self.context.seed, epoch)]
        batches = order[: len(self) * self.size].reshape(-1, self.size)
        keys = [[SampleKey(epoch, row) for row in batch] for batch in batches[:, rank::world_size].tolist()]
        loader = DataLoader(
            self.views,
            batch_sampler=keys,
            num_workers=self.context.num_workers,
            collate_fn=default_collate,
            worker_init_fn=pretrain_worker_init,
            generator=torch.Generator(),
        )
        for rows, batch in zip(batches, loader, strict=True):
            yield self._encode(batch), self.labels[rows].to(self.context.device)

    @torch.no_grad()
    def _encode(self, batch: dict) -> dict[str, Tensor]:
        encoded = encode_arrays(self.context.encoder, arrays_of(self.readouts), DTYPES[self.context.cache.dtype], batch)
        arrays = {name: gather_in_sample_order(each.to(self.context.device)) for name, each in encoded.items()}
        return {readout: torch.cat([arrays[name] for name in READOUTS[readout]], 1) for readout in self.readouts}


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
