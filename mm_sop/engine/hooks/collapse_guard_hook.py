"""Guard against collapse."""

import math

from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS


@HOOKS.register_module()
class CollapseGuardHook(Hook):
    """Watches the diagnostics of the model, names the cause of a collapse and what helps, and can stop the run.

    It reads the means of the last interval; a cause is reported when it held in ``patience`` intervals in a row.
    Diagnostics that a method does not log are passed over.

    Args:
        interval: Iterations between two looks.
        patience: Intervals in a row.
        action: ``'warn'`` or ``'stop'``.
        warmup: Iterations that are not looked at, in which the banks fill up.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 50, patience: int = 3, action: str = 'warn', warmup: int = 200) -> None:
        if action not in ('warn', 'stop'):
            raise ValueError(f"action must be 'warn' or 'stop', got {action!r}")
        self.interval = interval
        self.patience = patience
        self.action = action
        self.warmup = warmup
        self._streaks: dict[str, int] = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Look at the diagnostics."""
        if runner.iter < self.warmup or not self.every_n_train_iters(runner, self.interval):
            return
        scalars = runner.message_hub.log_scalars
        values = {
            key.removeprefix('train/'): buffer.mean(self.interval)
            for key, buffer in scalars.items()
            if key.startswith('train/')
        }
        causes = find_causes(values)
        self._streaks = {cause: self._streaks.get(cause, 0) + 1 for cause in causes}
        lasting = [cause for cause, streak in self._streaks.items() if streak % self.patience == 0]
        if not lasting:
            return
        message = f'Iteration {runner.iter + 1}: ' + ' '.join(lasting)
        if self.action == 'stop':
            raise RuntimeError(f'{message} (CollapseGuardHook stopped the run; action="warn" goes on)')
        runner.logger.warning(message)


def find_causes(values: dict[str, float]) -> list[str]:
    """Explain diagnostics that speak of a collapse.

    Args:
        values: Means of logged values by name; see :mod:`mm_sop.models.utils.diagnostics`.

    Returns:
        A sentence or two for each cause found.
    """
    if any(not math.isfinite(value) for name, value in values.items() if 'loss' in name):
        return ['The loss is not finite: lower the learning rate, lengthen the warm-up, or train in float32.']
    get = values.get
    causes = []
    if get('key_cosine', 0) > 0.9:
        causes.append(
            'All embeddings point the same way (mean cosine between pictures above 0.9): the encoder has collapsed. '
            'Lower the learning rate, raise the teacher momentum, add koleo_weight=0.05 or normalise the projector.'
        )
    elif get('support_cosine', 0) > 0.98 and get('agreement', 1) < 0.1:
        causes.append(
            'Supports are copies of their anchors (cosine above 0.98) and the student does not follow: nothing is '
            'learnt. Use more anchors and fewer supports, add koleo_weight=0.05, or shrink the bank.'
        )
    ceiling = get('max_entropy', math.inf)
    if get('target_entropy', 0) > 0.98 * ceiling:
        causes.append(
            'Targets are uniform (entropy within 2 % of its maximum): lower the teacher temperature or wait until the '
            'bank holds real embeddings.'
        )
    if ceiling < math.inf and get('mean_target_entropy', math.inf) < 0.5 * ceiling:
        causes.append(
            'Most pictures choose the same few prototypes (entropy of the mean target below half of its maximum): '
            'enlarge the bank, make sure that anchors are drawn anew in every step, or lower the learning rate.'
        )
    return causes
