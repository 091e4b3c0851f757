"""Base class of this project's hooks."""

from mmengine.hooks import Hook
from mmengine.runner import Runner


class PretrainHook(Hook):
    """Hook with the additional stages of :class:`PretrainLoop` and :class:`PretrainCheckpointHook`.

    Attributes:
        history_window: Number of latest logged values that the hook averages; checkpoints keep as many.
    """

    history_window = 0

    def before_checkpoint(self, runner: Runner) -> None:
        """Put state into the message hub before a checkpoint is saved; called on all processes."""

    def release(self, runner: Runner) -> None:
        """Release resources at the end of training, even if it failed."""
