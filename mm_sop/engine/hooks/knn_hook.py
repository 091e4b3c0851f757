"""k-NN evaluation during pretraining."""

from collections.abc import Sequence

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import nn

from mm_sop.engine.hooks.base import EvaluationHook
from mm_sop.evaluation.classification.knn_evaluator import KNNEvaluator
from mm_sop.evaluation.classification.knn_records import KNNRecords, describe, format_score
from mm_sop.evaluation.features.extraction import encode_without_network, has_teacher, network_encoder
from mm_sop.utils.modules import unwrap_model


@HOOKS.register_module()
class KNNHook(EvaluationHook):
    """Evaluates the network by k-NN before training, at an interval, and at the end.

    Training is not affected: random state, modes and statistics of all modules are preserved. Results go to the
    logger, to ``knn/...`` of the visualizer and the message hub, and to ``knn.json`` and ``knn.md`` in the work
    directory, where they stand beside those of the untrained network, raw pixels and a color histogram.

    Args:
        bank: Config of the labeled dataset that votes.
        queries: Configs of the datasets to classify, by name.
        interval: Epochs, or iterations, between evaluations, at least 1.
        by_epoch: Whether ``interval`` counts epochs. Defaults to True.
        num_neighbors: Number of neighbors that vote, or several numbers. The log shows the first one.
        network: ``'teacher'`` or ``'student'``; models without a teacher are recorded as ``'backbone'``.
        readouts: ``'global'`` for [CLS] or the pooled map, ``'patch'`` for the mean patch token, whose scores have the
            suffix ``_patch``.
        baselines: Whether to evaluate raw pixels and the color histogram once.
        **evaluation: Further arguments of :class:`KNNEvaluator`, such as ``labels`` and ``batch_size``.
    """

    def __init__(
        self,
        bank: dict,
        queries: dict[str, dict],
        interval: int = 1,
        by_epoch: bool = True,
        num_neighbors: int | Sequence[int] = 20,
        network: str = 'teacher',
        readouts: Sequence[str] = ('global',),
        baselines: bool = True,
        **evaluation,
    ) -> None:
        if interval < 1:
            raise ValueError(f'interval of KNNHook must be at least 1, got {interval}')
        self.interval = interval
        self.by_epoch = by_epoch
        self.network = network
        self.readouts = readouts
        self.baselines = baselines
        self.evaluator = KNNEvaluator(bank, queries, num_neighbors=num_neighbors, **evaluation)
        self.shown_neighbors = num_neighbors if isinstance(num_neighbors, int) else num_neighbors[0]

    def before_train(self, runner: Runner) -> None:
        """Evaluate the baselines and the untrained network; drop results that a resumed run will repeat."""
        super().before_train(runner)
        if not has_teacher(unwrap_model(runner.model)):
            self.network = 'backbone'
        self.records = KNNRecords(runner.work_dir)
        # Other machines may not see the work directory of the main process.
        shared = [self.records.records]
        broadcast_object_list(shared)
        self.records.records = shared[0]
        self.records.forget_after(runner.iter, len(runner.train_dataloader))
        if self.baselines and self.records.find('raw_pixels', None) is None:
            with self.timed_evaluation(nn.Identity()):
                by_name = self.evaluator.evaluate(encode_without_network)
            for name, scores in by_name.items():
                seconds = round(self.seconds, 3) / len(by_name)
                record = dict(network=name, iter=None, epoch=None, seconds=seconds, scores=scores)
                self.records.add(record, write=is_main_process())
        if runner.iter == 0:
            self._evaluate(runner, iteration=0, epoch=0)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._evaluate(runner, runner.iter + 1, runner.epoch)

    def after_train_epoch(self, runner: Runner) -> None:
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._evaluate(runner, runner.iter, runner.epoch + 1)

    def after_train(self, runner: Runner) -> None:
        if self.records.find(self.network, runner.iter) is None:
            self._evaluate(runner, runner.iter, runner.epoch)

    def _evaluate(self, runner: Runner, iteration: int, epoch: int) -> None:
        model = unwrap_model(runner.model)
        with self.timed_evaluation(model):
            by_readout = self.evaluator.evaluate(network_encoder(model, self.network, self.readouts))
        scores = {
            name if readout == 'global' else f'{name}_{readout}': score
            for readout, values in by_readout.items()
            for name, score in values.items()
        }
        record = dict(network=self.network, iter=iteration, epoch=epoch, seconds=round(self.seconds, 3), scores=scores)
        record['iters_per_epoch'] = len(runner.train_dataloader)
        self.records.add(record, write=is_main_process())
        accuracies = {f'knn/{name}': score['accuracy'] for name, score in scores.items()}
        fraction = self.publish(runner, accuracies, iteration)
        others = [other for other in self.records if not other['iter'] and other is not record]
        references = ''.join(f' | {describe(other)}: {self._format(other)}' for other in others)
        runner.logger.info(
            f'k-NN at iteration {iteration}, {describe(record)}, k={self.shown_neighbors}, in %: '
            f'{self._format(record)}{references} ({self.seconds:.1f} s, evaluation takes {fraction:.1%} of the run)'
        )

    def _format(self, record: dict) -> str:
        suffix = f'_k{self.shown_neighbors}'
        shown = {name: score for name, score in record['scores'].items() if name.endswith(suffix)}
        return ', '.join(f'{name.removesuffix(suffix)} {format_score(score)}' for name, score in shown.items())
