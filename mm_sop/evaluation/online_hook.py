"""k-NN, linear probe and rank during pretraining, at a price that is kept."""

import math
import time
from collections.abc import Iterator

import torch
from mmengine.dataset import default_collate
from mmengine.dist import broadcast_object_list, get_dist_info, get_world_size
from mmengine.hooks import Hook
from mmpretrain.registry import DATASETS, HOOKS
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from mm_sop.datasets.labelled_images import check_classes
from mm_sop.datasets.randomness import isolated_random_state
from mm_sop.datasets.worker import pretrain_worker_init
from mm_sop.engine.utils import share_buffers, unwrap_model
from mm_sop.evaluation.feature_queue import FeatureQueue
from mm_sop.evaluation.features import evaluation_mode, has_teacher, network_encoder
from mm_sop.evaluation.knn import read_labels
from mm_sop.evaluation.logistic import fit_logistic
from mm_sop.functional.knn import knn_scores
from mm_sop.functional.rank import rankme
from mm_sop.models.utils.distributed import gather_in_sample_order

_PROBE = dict(penalty=1e-2, max_iterations=30)


@HOOKS.register_module()
class OnlineEvaluationHook(Hook):
    """Follows k-NN accuracy, linear accuracy and RankMe closely, with features that come in small helpings.

    A visit encodes one batch of the bank and one of the queries. Both go into queues that k-NN, linear probe (logistic
    regression on standardised features) and RankMe share; the queues therefore hold features of the last few visits,
    which a changing network lets age. :class:`KNNHook` gives exact figures at longer intervals.

    The hook measures what it costs. It waits longer between visits than ``interval`` if it would take more than
    ``max_share`` of the run's time. Training is not disturbed: random state and modes stay as they were. Values go to
    the logger and to ``online/...`` of the visualizer and the message hub.

    Args:
        bank: Config of the labelled data set that is learnt from.
        queries: Config of the data set that is classified.
        interval: Iterations between visits at least. Defaults to 50.
        max_share: Largest share of the run's time, in (0, 1). Defaults to 0.05.
        batch_size: Pictures of each kind encoded at a visit by one process. Defaults to 256.
        queue_size: Features of each kind that are kept. Defaults to 2048.
        num_neighbors: Neighbours that vote, when there are as many. Defaults to 20.
        temperature: Temperature of the votes' weights. Defaults to 0.07.
        network: ``'teacher'`` or ``'student'``, where the model has both. Defaults to ``'teacher'``.
        num_workers: Worker processes that load pictures, of each kind. Defaults to 0.

    Raises:
        ValueError: An argument is out of range, or bank and queries have different classes or no labels.
    """

    # After the teacher's update and the logger, before checkpoints.
    priority = 'LOW'

    def __init__(
        self,
        bank: dict,
        queries: dict,
        interval: int = 50,
        max_share: float = 0.05,
        batch_size: int = 256,
        queue_size: int = 2048,
        num_neighbors: int = 20,
        temperature: float = 0.07,
        network: str = 'teacher',
        num_workers: int = 0,
    ) -> None:
        if interval < 1 or not 0 < max_share < 1:
            raise ValueError(
                f'OnlineEvaluationHook: expected interval >= 1 and max_share in (0, 1), got {interval} and {max_share}'
            )
        self.datasets = dict(bank=DATASETS.build(bank), queries=DATASETS.build(queries))
        self._check_data()
        self.queues = {name: FeatureQueue(queue_size) for name in self.datasets}
        self.interval = interval
        self.max_share = max_share
        self.batch_size = batch_size
        self.num_neighbors = num_neighbors
        self.temperature = temperature
        self.network = network
        self.num_workers = num_workers

    def _check_data(self) -> None:
        check_classes(self.datasets)
        for name, dataset in self.datasets.items():
            if len(dataset) < get_world_size():
                raise ValueError(
                    f'OnlineEvaluationHook: {len(dataset)} images of {name} cannot be shared by {get_world_size()} '
                    'processes: give more images'
                )
            if read_labels(dataset, 'class', [0]) is None:
                raise ValueError(f'OnlineEvaluationHook: images of {name} have no gt_label: give a labeled dataset')

    def before_train(self, runner) -> None:
        self.started = time.perf_counter()
        self.spent = 0.0
        self.first_iter = runner.iter
        self.next_visit = runner.iter + self.interval
        self.batches = {
            name: _endless_batches(dataset, self.batch_size, self.num_workers, runner.seed)
            for name, dataset in self.datasets.items()
        }

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 >= self.next_visit:
            self._visit(runner)

    def release(self, runner) -> None:
        """Let the loading processes go."""
        self.batches = {}

    def _visit(self, runner) -> None:
        started = _now()
        model = unwrap_model(runner.model)
        share_buffers(model)
        with isolated_random_state(cuda=True), evaluation_mode(model):
            for name, queue in self.queues.items():
                queue.push(*self._encode(model, next(self.batches[name])))
            values = self.measure()
        seconds = _now() - started
        self.spent += seconds
        waiting = self._pace(runner.iter + 1, seconds)
        for name, value in values.items():
            runner.message_hub.update_scalar(name, value)
        runner.visualizer.add_scalars(values, step=runner.iter + 1, file_path=f'{runner.timestamp}.json')
        runner.logger.info(
            f'Online evaluation at iteration {runner.iter + 1}: k-NN {100 * values["online/knn"]:.1f} %, linear '
            f'{100 * values["online/linear"]:.1f} %, RankMe {values["online/rankme"]:.1f} on the last '
            f'{len(self.queues["bank"])} features ({seconds:.2f} s, {self._share():.1%} of the run, next in {waiting} '
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
        deviation, center = torch.std_mean(bank.features, dim=0, correction=0)
        standard = [(queue.features - center) / deviation.clamp_min(1e-6) for queue in (bank, queries)]
        weight, bias = fit_logistic(standard[0], bank.labels, num_classes, **_PROBE)
        predicted = dict(knn=votes, linear=standard[1] @ weight.T + bias)
        accuracies = {name: each.argmax(1) == queries.labels for name, each in predicted.items()}
        values = {f'online/{name}': float(right.float().mean()) for name, right in accuracies.items()}
        return dict(values, **{'online/rankme': rankme(bank.features)})

    def _pace(self, iteration: int, cost: float) -> int:
        """Choose the next visit so that another one of this cost keeps the share; iterations until then."""
        training = time.perf_counter() - self.started - self.spent
        needed = (self.spent + cost) * (1 / self.max_share - 1) - training
        per_iteration = training / (iteration - self.first_iter)
        # The processes must agree on when they meet.
        waiting = [max(self.interval, math.ceil(needed / per_iteration))]
        broadcast_object_list(waiting)
        self.next_visit = iteration + waiting[0]
        return waiting[0]

    def _share(self) -> float:
        return self.spent / (time.perf_counter() - self.started)


def _endless_batches(dataset: Dataset, batch_size: int, num_workers: int, seed: int) -> Iterator[dict]:
    """Shuffled batches of this process's share, over and over again; all processes have batches of one size."""
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


def _now() -> float:
    """The time, when the device has done all work so far."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
