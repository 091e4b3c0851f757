"""Writes the report at the end of training."""

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from mm_sop.engine.sharding import whole_model
from mm_sop.utils.failures import describe_failure


@HOOKS.register_module()
class ReportHook(Hook):
    """Writes ``report/index.html`` into the work directory when training ends.

    The main process writes it. Training is not affected: a report that fails is logged as an error and does not end
    the run.

    Args:
        interval: Epochs >= 1 between reports during training. Defaults to None: only at the end.
        seed: Seed for the choice of the images in the report.
    """

    # After the last evaluation.
    priority = 'VERY_LOW'

    def __init__(self, interval: int | None = None, seed: int = 0) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f'interval of ReportHook must be at least 1 or None, got {interval}')
        self.interval = interval
        self.seed = seed

    def after_train_epoch(self, runner: Runner) -> None:
        if self.interval is not None and self.every_n_epochs(runner, self.interval):
            self._write(runner)

    def after_train(self, runner: Runner) -> None:
        self._write(runner)

    def _write(self, runner: Runner) -> None:
        model = whole_model(runner)
        if not is_main_process():
            return
        try:
            # Its charts load packages that training does not need, such as Matplotlib.
            from mm_sop.report.report import write_report

            path = write_report(runner.work_dir, runner.cfg, model, self.seed)
        except Exception as error:
            reason = describe_failure(error)
            runner.logger.error(
                f'The report could not be written{f": {reason}" if reason else ""}. Training is not affected; try '
                f'again with: python tools/make_report.py {runner.work_dir}',
                exc_info=reason is None,
            )
        else:
            runner.logger.info(f'Report: {path}')
