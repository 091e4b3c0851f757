"""k-NN evaluation during pretraining."""

import time
from collections.abc import Callable, Sequence

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from torch import nn

from mm_sop.datasets.randomness import isolated_random_state
from mm_sop.engine.utils import share_buffers, unwrap_model
from mm_sop.evaluation.baselines import encode_without_network
from mm_sop.evaluation.features import evaluation_mode, has_teacher, network_encoder
from mm_sop.evaluation.knn import KNNEvaluator
from mm_sop.evaluation.records import KNNRecords, describe, format_score


def find_knn_settings(config: Config) -> dict | None:
    """Settings of a config's KNNHook, or None if it has none."""
    hooks = [dict(hook) for hook in config.get('custom_hooks') or [] if hook['type'] == 'KNNHook']
    return hooks[0] if hooks else None


@HOOKS.register_module()
class KNNHook(Hook):
    """Measures by k-NN what the network has learnt: before training, at an interval, and at the end.

    Training is not disturbed: random state, modes and statistics of all modules stay as they were. Results go to the
    logger, to ``knn/...`` of the visualizer and the message hub, and to ``knn.json`` and ``knn.md`` in the work
    directory. The untrained network, raw pixels and a colour histogram stand beside the results.

    Args:
        bank: Config of the labelled data set that votes.
        queries: Configs of the data sets to classify, by name.
        interval: Epochs, or iterations, between evaluations. Defaults to 1.
        by_epoch: Whether ``interval`` counts epochs. Defaults to True.
        labels: What to classify, see :class:`KNNEvaluator`. Defaults to ``('class', 'identity')``.
        num_neighbors: Number of neighbours that vote, or several. The first one is shown in the log.
        temperature: Temperature of the votes' weights.
        network: ``'teacher'`` or ``'student'``; models without a teacher are recorded as ``'backbone'``.
        readouts: ``'global'`` for [CLS] or the pooled map, ``'patch'`` for the mean patch token. The scores of the
            second carry its name.
        baselines: Whether to measure raw pixels and the colour histogram as well, once.
        batch_size: Pictures encoded at once by one process.
        num_workers: Worker processes that load pictures.

    Raises:
        ValueError: If the interval is not positive.
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

    def before_train(self, runner) -> None:
        self.started = time.perf_counter()
        self.spent = 0.0
        if not has_teacher(unwrap_model(runner.model)):
            self.network = 'backbone'
        self.records = KNNRecords(runner.work_dir)
        # Only the main process is sure to see the work directory.
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

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._evaluate(runner, runner.iter + 1, runner.epoch)

    def after_train_epoch(self, runner) -> None:
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._evaluate(runner, runner.iter, runner.epoch + 1)

    def after_train(self, runner) -> None:
        if self.records.find(self.network, runner.iter) is None:
            self._evaluate(runner, runner.iter, runner.epoch)

    def _evaluate(self, runner, iteration: int, epoch: int) -> None:
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

    def _log(self, runner, record: dict) -> None:
        values = {f'knn/{name}': score['accuracy'] for name, score in record['scores'].items()}
        for name, value in values.items():
            runner.message_hub.update_scalar(name, value)
        runner.visualizer.add_scalars(values, step=record['iter'], file_path=f'{runner.timestamp}.json')
        share = self.spent / max(time.perf_counter() - self.started, 1e-9)
        runner.logger.info(
            f'k-NN at iteration {record["iter"]}, {describe(record)}, k={self.shown_neighbors}, in %: '
            f'{self._format(record)}{self._format_references(record)} ({record["seconds"]:.1f} s, evaluation takes '
            f'{share:.1%} of the run)'
        )

    def _format(self, record: dict) -> str:
        ending = f'_k{self.shown_neighbors}'
        shown = {name: score for name, score in record['scores'].items() if name.endswith(ending)}
        return ', '.join(f'{name.removesuffix(ending)} {format_score(score)}' for name, score in shown.items())

    def _format_references(self, measured: dict) -> str:
        references = [record for record in self.records if not record['iter'] and record is not measured]
        return ''.join(f' | {describe(record)}: {self._format(record)}' for record in references)
