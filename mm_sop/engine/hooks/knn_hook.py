"""k-NN evaluation during pretraining."""

import time
from collections.abc import Callable, Sequence

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import nn

from mm_sop.datasets.randomness import isolated_random_state
from mm_sop.evaluation.classification.knn_evaluator import KNNEvaluator
from mm_sop.evaluation.classification.knn_records import KNNRecords, describe, format_score
from mm_sop.evaluation.features.baselines import encode_without_network
from mm_sop.evaluation.features.extraction import evaluation_mode, has_teacher, network_encoder
from mm_sop.utils.modules import share_buffers, unwrap_model


@HOOKS.register_module()
class KNNHook(Hook):
    """Evaluates the network by k-NN before training, at an interval, and at the end.

    Training is not affected: random state, modes and statistics of all modules are preserved. Results go to the
    logger, to ``knn/...`` of the visualizer and the message hub, and to ``knn.json`` and ``knn.md`` in the work
    directory, where they stand beside those of the untrained network, raw pixels and a color histogram.

    Args:
        bank: Config of the labeled dataset that votes.
        queries: Configs of the datasets to classify, by name.
        interval: Epochs, or iterations, between evaluations. Defaults to 1.
        by_epoch: Whether ``interval`` counts epochs. Defaults to True.
        labels: What to classify, see :class:`KNNEvaluator`. Defaults to ``('class', 'identity')``.
        num_neighbors: Number of neighbors that vote, or several numbers. The log shows the first one.
        temperature: Temperature of the votes' weights.
        network: ``'teacher'`` or ``'student'``; models without a teacher are recorded as ``'backbone'``.
        readouts: ``'global'`` for [CLS] or the pooled map, ``'patch'`` for the mean patch token, whose scores have the
            suffix ``_patch``.
        baselines: Whether to evaluate raw pixels and the color histogram once.
        batch_size: Images that one process encodes at once.
        num_workers: Worker processes that load images.

    Raises:
        ValueError: The interval is not positive.
    """

    # After the teacher's update and the logger, before checkpoints.
    priority = 'LOW'

    def __init__(
        self,
        bank: dict,
        queries: dict[str, dict],
        interval: int = 1,
        by_epoch: bool = True,
        labels: Sequence[str] = ('class', 'identity'),
        num_neighbors: int | Sequence[int] = 20,
        temperature: float = 0.07,
        network: str = 'teacher',
        readouts: Sequence[str] = ('global',),
        baselines: bool = True,
        batch_size: int = 256,
        num_workers: int = 0,
    ) -> None:
        if interval < 1:
            raise ValueError(f'interval of KNNHook must be at least 1, got {interval}')
        self.interval = interval
        self.by_epoch = by_epoch
        self.network = network
        self.readouts = readouts
        self.baselines = baselines
        self.evaluator = KNNEvaluator(bank, queries, labels, num_neighbors, temperature, batch_size, num_workers)
        self.shown_neighbors = num_neighbors if isinstance(num_neighbors, int) else num_neighbors[0]

    def before_train(self, runner: Runner) -> None:
        """Evaluate the baselines and the untrained network; drop results that a resumed run will repeat."""
        self.started = time.perf_counter()
        self.spent = 0.0
        if not has_teacher(unwrap_model(runner.model)):
            self.network = 'backbone'
        self.records = KNNRecords(runner.work_dir)
        # Other machines may not see the work directory of the main process.
        shared = [self.records.records]
        broadcast_object_list(shared)
        self.records.records = shared[0]
        self.records.forget_after(runner.iter, len(runner.train_dataloader))
        if self.baselines and self.records.find('raw_pixels', None) is None:
            scores, seconds = self._measure(encode_without_network)
            for name, values in scores.items():
                record = dict(network=name, iter=None, epoch=None, seconds=seconds / len(scores), scores=values)
                self.records.add(record, write=is_main_process())
        if runner.iter == 0:
            self._evaluate(runner, iteration=0, epoch=0)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Evaluate if the interval counts iterations."""
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._evaluate(runner, runner.iter + 1, runner.epoch)

    def after_train_epoch(self, runner: Runner) -> None:
        """Evaluate if the interval counts epochs."""
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._evaluate(runner, runner.iter, runner.epoch + 1)

    def after_train(self, runner: Runner) -> None:
        """Evaluate the final network."""
        if self.records.find(self.network, runner.iter) is None:
            self._evaluate(runner, runner.iter, runner.epoch)

    def _evaluate(self, runner: Runner, iteration: int, epoch: int) -> None:
        model = unwrap_model(runner.model)
        share_buffers(model)
        by_readout, seconds = self._measure(network_encoder(model, self.network, self.readouts), model)
        scores = {
            name if readout == 'global' else f'{name}_{readout}': score
            for readout, values in by_readout.items()
            for name, score in values.items()
        }
        record = dict(network=self.network, iter=iteration, epoch=epoch, seconds=seconds, scores=scores)
        record['iters_per_epoch'] = len(runner.train_dataloader)
        self.records.add(record, write=is_main_process())
        self._log(runner, record)

    def _measure(self, encode: Callable, model: nn.Module | None = None) -> tuple[dict, float]:
        start = time.perf_counter()
        with isolated_random_state(cuda=True), evaluation_mode(model or nn.Identity()):
            scores = self.evaluator.evaluate(encode)
        seconds = time.perf_counter() - start
        self.spent += seconds
        return scores, round(seconds, 3)

    def _log(self, runner: Runner, record: dict) -> None:
        values = {f'knn/{name}': score['accuracy'] for name, score in record['scores'].items()}
        for name, value in values.items():
            runner.message_hub.update_scalar(name, value)
        runner.visualizer.add_scalars(values, step=record['iter'], file_path=f'{runner.timestamp}.json')
        fraction = self.spent / max(time.perf_counter() - self.started, 1e-9)
        others = [other for other in self.records if not other['iter'] and other is not record]
        references = ''.join(f' | {describe(other)}: {self._format(other)}' for other in others)
        runner.logger.info(
            f'k-NN at iteration {record["iter"]}, {describe(record)}, k={self.shown_neighbors}, in %: '
            f'{self._format(record)}{references} ({record["seconds"]:.1f} s, evaluation takes {fraction:.1%} of the '
            'run)'
        )

    def _format(self, record: dict) -> str:
        suffix = f'_k{self.shown_neighbors}'
        shown = {name: score for name, score in record['scores'].items() if name.endswith(suffix)}
        return ', '.join(f'{name.removesuffix(suffix)} {format_score(score)}' for name, score in shown.items())
