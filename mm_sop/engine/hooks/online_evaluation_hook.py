"""k-NN, linear probe and rank during pretraining, with bounded overhead."""

import math
import time
from collections.abc import Iterator

import torch
from mmengine.dataset import BaseDataset, default_collate
from mmengine.dist import broadcast_object_list, get_dist_info, get_world_size
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, HOOKS
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from mm_sop.datasets.labeled.folders import check_classes
from mm_sop.datasets.worker import pretrain_worker_init
from mm_sop.engine.hooks.base import EvaluationHook
from mm_sop.evaluation.classification.logistic import fit_logistic
from mm_sop.evaluation.features.extraction import has_teacher, network_encoder
from mm_sop.evaluation.features.queue import FeatureQueue
from mm_sop.evaluation.labeled_data import read_labels
from mm_sop.functional.knn import knn_scores
from mm_sop.functional.rank import rankme
from mm_sop.utils.distributed import gather_in_sample_order
from mm_sop.utils.modules import unwrap_model


@HOOKS.register_module()
class OnlineEvaluationHook(EvaluationHook):
    """Tracks k-NN accuracy, linear accuracy and RankMe from features accumulated over several steps.

    Each evaluation encodes one batch of the bank and one of the queries. Both go into queues that k-NN, linear probe
    (logistic regression on standardized features) and RankMe share. The queues contain features of the last few
    evaluations, and thus of slightly older networks; :class:`KNNHook` gives exact results at longer intervals.

    The hook measures its cost. It waits longer than ``interval`` between evaluations if it would take more than
    ``max_fraction`` of the run's time. Training is not affected: random state and modes are preserved. Results go to
    the logger and to ``online/...`` of the visualizer and the message hub.

    Args:
        bank: Config of the labeled dataset that k-NN and the probe learn from.
        queries: Config of the labeled dataset that they classify.
        interval: Minimum number of iterations between evaluations. Defaults to 50.
        max_fraction: Maximum fraction of the run's time, in (0, 1). Defaults to 0.05.
        batch_size: Images of each dataset that one process encodes in an evaluation. Defaults to 256.
        queue_size: Capacity of each queue. Defaults to 2048.
        num_neighbors: Neighbors that vote, or all features if there are fewer. Defaults to 20.
        temperature: Temperature of the votes' weights. Defaults to 0.07.
        network: ``'teacher'`` or ``'student'``, if the model has both. Defaults to ``'teacher'``.
        num_workers: Worker processes that load the images of each dataset. Defaults to 0.

    Raises:
        ValueError: An argument is out of range, or bank and queries have different classes or no labels.
    """

    def __init__(
        self,
        bank: dict,
        queries: dict,
        interval: int = 50,
        max_fraction: float = 0.05,
        batch_size: int = 256,
        queue_size: int = 2048,
        num_neighbors: int = 20,
        temperature: float = 0.07,
        network: str = 'teacher',
        num_workers: int = 0,
    ) -> None:
        if interval < 1 or not 0 < max_fraction < 1:
            raise ValueError(
                f'OnlineEvaluationHook: expected interval >= 1 and max_fraction in (0, 1), got {interval} and '
                f'{max_fraction}'
            )
        self.datasets = dict(bank=DATASETS.build(bank), queries=DATASETS.build(queries))
        check_classes(self.datasets)
        for name, dataset in self.datasets.items():
            if len(dataset) < get_world_size():
                raise ValueError(
                    f'OnlineEvaluationHook: {len(dataset)} images of {name} cannot be distributed over '
                    f'{get_world_size()} processes: give more images'
                )
            if read_labels(dataset, 'class', [0]) is None:
                raise ValueError(f'OnlineEvaluationHook: images of {name} have no gt_label: give a labeled dataset')
        self.queues = {name: FeatureQueue(queue_size) for name in self.datasets}
        self.interval = interval
        self.max_fraction = max_fraction
        self.batch_size = batch_size
        self.num_neighbors = num_neighbors
        self.temperature = temperature
        self.network = network
        self.num_workers = num_workers

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.first_iter = runner.iter
        self.next_iter = runner.iter + self.interval
        self.batches = {
            name: _endless_batches(dataset, self.batch_size, self.num_workers, runner.seed)
            for name, dataset in self.datasets.items()
        }

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 >= self.next_iter:
            self._evaluate(runner)

    def release(self, runner: Runner) -> None:
        """End the worker processes."""
        self.batches = {}

    def _evaluate(self, runner: Runner) -> None:
        model, iteration = unwrap_model(runner.model), runner.iter + 1
        with self.timed_evaluation(model):
            for name, queue in self.queues.items():
                queue.push(*self._encode(model, next(self.batches[name])))
            values = self.measure()
        waiting = self._pace(iteration)
        fraction = self.publish(runner, values, iteration)
        runner.logger.info(
            f'Online evaluation at iteration {iteration}: k-NN {100 * values["online/knn"]:.1f} %, linear '
            f'{100 * values["online/linear"]:.1f} %, RankMe {values["online/rankme"]:.1f} on the last '
            f'{len(self.queues["bank"])} features ({self.seconds:.2f} s, {fraction:.1%} of the run, next in {waiting} '
            'iterations)'
        )

    @torch.no_grad()
    def _encode(self, model: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
        features = network_encoder(model, self.network if has_teacher(model) else 'teacher')(batch)['global']
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']]).to(features.device)
        return gather_in_sample_order(features), gather_in_sample_order(labels)

    def measure(self) -> dict[str, float]:
        """Evaluate the features in the queues.

        Returns:
            ``online/knn`` and ``online/linear``, accuracies in [0, 1], and ``online/rankme``.
        """
        bank, queries = self.queues['bank'], self.queues['queries']
        num_classes = int(max(bank.labels.max(), queries.labels.max())) + 1
        k = min(self.num_neighbors, len(bank))
        votes = knn_scores(bank.features, bank.labels, queries.features, k, self.temperature, num_classes)[k]
        std, center = torch.std_mean(bank.features, dim=0, correction=0)
        standardized = [(queue.features - center) / std.clamp_min(1e-6) for queue in (bank, queries)]
        weight, bias = fit_logistic(standardized[0], bank.labels, num_classes, penalty=1e-2, max_iterations=30)
        scores = dict(knn=votes, linear=standardized[1] @ weight.T + bias)
        correct = {name: each.argmax(1) == queries.labels for name, each in scores.items()}
        values = {f'online/{name}': float(hits.float().mean()) for name, hits in correct.items()}
        return dict(values, **{'online/rankme': rankme(bank.features)})

    def _pace(self, iteration: int) -> int:
        """Schedule the next evaluation so that its cost stays within ``max_fraction``; iterations until then."""
        training = time.perf_counter() - self.started - self.spent
        needed = (self.spent + self.seconds) * (1 / self.max_fraction - 1) - training
        per_iteration = training / (iteration - self.first_iter)
        # All processes must evaluate in the same iteration.
        waiting = [max(self.interval, math.ceil(needed / per_iteration))]
        broadcast_object_list(waiting)
        self.next_iter = iteration + waiting[0]
        return waiting[0]


def _endless_batches(dataset: BaseDataset, batch_size: int, num_workers: int, seed: int) -> Iterator[dict]:
    """Shuffled batches of this process's images, repeated forever; all processes have batches of the same size."""
    rank, world_size = get_dist_info()
    loader = DataLoader(
        Subset(dataset, range(rank, len(dataset), world_size)),
        batch_size=min(batch_size, len(dataset) // world_size),
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=default_collate,
        worker_init_fn=pretrain_worker_init,
        generator=torch.Generator().manual_seed(seed),
    )
    while True:
        yield from loader
