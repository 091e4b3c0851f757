"""Pictures that cannot be read: recorded, and too many of them stop the run."""

from pathlib import Path

from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from mm_sop.datasets.files import printable
from mm_sop.engine.atomic import write_atomically

_MAX_LISTED = 20


class TooManyBadImagesError(RuntimeError):
    """More pictures than tolerated cannot be read."""


@HOOKS.register_module()
class BadImageHook(Hook):
    """Collects from all processes the pictures that :class:`SeededDataset` had to replace.

    They are written to ``bad_images.txt`` in the work directory, one line each with path, tab and reason, and survive
    a resumption. Undecodable bytes of a name are written as they are; control characters are escaped.

    Args:
        max_share (float, optional): Share of the data set, 0 ... 1, above which the run stops. Defaults to None: the
            ``max_unreadable`` of the data set, or 0.01 where it has none.
        interval (int): Iterations between exchanges. Defaults to 50.

    Raises:
        ValueError: ``max_share`` is no share.
    """

    priority = 'NORMAL'

    def __init__(self, max_share: float | None = None, interval: int = 50) -> None:
        if max_share is not None and not 0 <= max_share <= 1:
            raise ValueError(f'max_share={max_share} is no share: expected 0 ... 1')
        self.max_share = max_share
        self.interval = interval
        self._known: dict[str, str] = {}
        self._new: dict[str, str] = {}

    def before_train(self, runner: Runner) -> None:
        """Take up what a resumed run knows already."""
        self._known = dict(runner.message_hub.get_info('bad_images', {}))
        self._new = {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Note the batch's replaced pictures."""
        for sample in data_batch['data_samples']:
            self._new.update(sample.get('unreadable', ()))
        if self.every_n_train_iters(runner, self.interval):
            self._exchange(runner)

    def before_checkpoint(self, runner: Runner) -> None:
        """Let the checkpoint have the whole list."""
        self._exchange(runner)

    def after_train(self, runner: Runner) -> None:
        """Exchange the rest."""
        self._exchange(runner)

    def _exchange(self, runner: Runner) -> None:
        found = {path: reason for new in all_gather_object(self._new) for path, reason in new.items()}
        self._new = {}
        if found.keys() <= self._known.keys():
            return
        self._known.update(found)
        runner.message_hub.update_info('bad_images', dict(self._known))
        if is_main_process():
            listing = (f'{printable(path, keep_bytes=True)}\t{printable(reason)}\n' for path, reason in self._sorted())
            write_atomically(Path(runner.work_dir, 'bad_images.txt'), ''.join(listing))
        self._stop_if_too_many(runner)

    def _sorted(self) -> list[tuple[str, str]]:
        return sorted(self._known.items())

    def _stop_if_too_many(self, runner: Runner) -> None:
        dataset = runner.train_dataloader.dataset
        share = getattr(dataset, 'max_unreadable', 0.01) if self.max_share is None else self.max_share
        if len(self._known) <= share * len(dataset):
            return
        listing = [f'  {printable(path)}\t{printable(reason)}\n' for path, reason in self._sorted()[:_MAX_LISTED]]
        rest = len(self._known) - _MAX_LISTED
        more = f'  and {rest} more\n' if rest > 0 else ''
        raise TooManyBadImagesError(
            f'{len(self._known)} of {len(dataset)} pictures cannot be read, more than the tolerated {share:.2%}:\n'
            f'{"".join(listing)}{more}'
            f'All are listed in {Path(runner.work_dir, "bad_images.txt")}. Repair or remove them, or raise max_share '
            'of BadImageHook'
        )
