"""Records unreadable images, and stops a run that has too many of them."""

from pathlib import Path

from mmengine.dist import all_gather_object, is_main_process
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from mm_sop.engine.hooks.base import PretrainHook
from mm_sop.utils.failures import UserError
from mm_sop.utils.files import printable, write_atomically

_MAX_LISTED = 20


class TooManyBadImagesError(UserError, RuntimeError):
    """More images than tolerated cannot be read."""


@HOOKS.register_module()
class BadImageHook(PretrainHook):
    """Collects from all processes the images that :class:`SeededDataset` had to replace.

    They are written to ``bad_images.txt`` in the work directory, one line each with path, tab and reason, and survive
    a resumption. Undecodable bytes of a name are written unchanged; control characters are escaped.

    Args:
        max_fraction (float, optional): Fraction of the dataset, in [0, 1], above which the run stops. Defaults to None:
            ``max_unreadable`` of the dataset, or 0.01 if it has none.
        interval (int): Iterations between exchanges among the processes. Defaults to 50.
    """

    def __init__(self, max_fraction: float | None = None, interval: int = 50) -> None:
        if max_fraction is not None and not 0 <= max_fraction <= 1:
            raise ValueError(f'max_fraction of BadImageHook must be in [0, 1], got {max_fraction}')
        self.max_fraction = max_fraction
        self.interval = interval
        self._known: dict[str, str] = {}
        self._new: dict[str, str] = {}

    def before_train(self, runner: Runner) -> None:
        """Take over the list of a resumed run."""
        self._known = dict(runner.message_hub.get_info('bad_images', {}))
        self._new = {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        for sample in data_batch['data_samples']:
            self._new.update(sample.get('unreadable', ()))
        if self.every_n_train_iters(runner, self.interval):
            self._exchange(runner)

    def before_checkpoint(self, runner: Runner) -> None:
        """Complete the list that the checkpoint contains."""
        self._exchange(runner)

    def after_train(self, runner: Runner) -> None:
        self._exchange(runner)

    def _exchange(self, runner: Runner) -> None:
        found = {path: reason for new in all_gather_object(self._new) for path, reason in new.items()}
        self._new = {}
        if found.keys() <= self._known.keys():
            return
        self._known.update(found)
        runner.message_hub.update_info('bad_images', dict(self._known))
        items = sorted(self._known.items())
        if is_main_process():
            text = ''.join(f'{printable(path, keep_bytes=True)}\t{printable(reason)}\n' for path, reason in items)
            write_atomically(Path(runner.work_dir, 'bad_images.txt'), text)
        dataset = runner.train_dataloader.dataset
        limit = getattr(dataset, 'max_unreadable', 0.01) if self.max_fraction is None else self.max_fraction
        if len(items) > limit * len(dataset):
            lines = [f'  {printable(path)}\t{printable(reason)}\n' for path, reason in items[:_MAX_LISTED]]
            rest = len(items) - _MAX_LISTED
            more = f'  and {rest} more\n' if rest > 0 else ''
            raise TooManyBadImagesError(
                f'{len(items)} of {len(dataset)} images cannot be read, more than the tolerated {limit:.2%}:\n'
                f'{"".join(lines)}{more}'
                f'All are listed in {Path(runner.work_dir, "bad_images.txt")}. Repair or remove them, or raise '
                'max_fraction of BadImageHook'
            )
