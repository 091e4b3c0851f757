"""Logged values that are kept for averages."""

from collections import defaultdict

from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

SHORTEST = 1000
"""Values of each kind that are always kept, 16 kB."""


def shorten_histories(runner: Runner) -> None:
    """Drop logged values that no average needs any more; checkpoints would grow by them in every iteration.

    Hooks that average over more than :data:`SHORTEST` values say so in their attribute ``history_window``. What the
    log processor averages over the whole run is kept.

    Args:
        runner: The runner; histories in its message hub are replaced by shorter ones.
    """
    longest = max(getattr(hook, 'history_window', 0) for hook in runner.hooks)
    shortest = max(SHORTEST, runner.log_processor.window_size, longest)
    windows = _windows(runner)
    scalars = runner.message_hub.log_scalars
    for key, history in scalars.items():
        values, counts = history.data
        # The log processor knows ``train/loss`` as ``loss``.
        length = max(shortest, windows[key], windows[key.partition('/')[2]])
        if len(values) > length:
            scalars[key] = HistoryBuffer(values[-length:], counts[-length:])


def _windows(runner: Runner) -> dict[str, float]:
    """Number of values that the log processor's own rules need, by name; 0 for all others."""
    windows = defaultdict(int)
    for rule in runner.log_processor.custom_cfg:
        name, window = rule['data_src'], rule.get('window_size')
        if window == 'epoch':
            window = len(runner.train_dataloader)
        elif rule.get('method_name') == 'current':
            window = 1
        windows[name] = max(windows[name], window if isinstance(window, int) else float('inf'))
    return windows
