"""Config, model and scalars of a run, from what it has logged."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch import nn

from mm_sop.encoders.safe_config import build_untrusted, read_stored_config
from mm_sop.report.charts import Curve
from mm_sop.utils.run_starts import list_starts


def read_config(work_dir: str | Path) -> Config:
    """Read the config of a run's last start without executing it; it is unchecked, see :func:`check_config`.

    Raises:
        FileNotFoundError: The folder is not the work directory of a run.
        WeightsError: The config is damaged.
    """
    found = [path for start in list_starts(work_dir) if (path := start.folder / 'vis_data/config.py').is_file()]
    if not found:
        raise FileNotFoundError(f'{work_dir} is not the work directory of a run: it has no */vis_data/config.py')
    return read_stored_config(found[-1])


def build_model(config: Config, source: str) -> nn.Module:
    """Build the untrained model of a config that comes from ``source``; see :func:`build_untrusted`."""
    settings = dict(config.get('model') or {})
    if 'data_preprocessor' in config:
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    return build_untrusted(MODELS, settings, source)


def read_scalars(work_dir: str | Path) -> Mapping[str, Curve]:
    """Read the scalars of a run and of its resumptions as one history by name.

    If a later start repeats iterations, its values replace the earlier ones. The order of the starts is recorded by
    :func:`record_start`, because the clock may have been set back. If a later start has epochs of another length,
    earlier iterations are renumbered like the position of the run.
    """
    history: dict[int, dict[str, float]] = {}
    length = None
    for start in list_starts(work_dir):
        if length and start.iters_per_epoch and start.iteration:
            history = {step * start.iters_per_epoch // length: values for step, values in history.items()}
        length = start.iters_per_epoch or length
        path = start.folder / 'vis_data/scalars.json'
        lines = _read_lines(path) if path.is_file() else []
        if lines:
            kept = min(line['step'] for line in lines) - 1 if start.iteration is None else start.iteration
            history = {step: values for step, values in history.items() if step <= kept}
        for line in lines:
            history.setdefault(line.pop('step'), {}).update(line)
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for step in sorted(history):
        for name, value in history[step].items():
            steps, values = curves.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return curves


def estimate_seconds(scalars: Mapping[str, Curve], records: Sequence[dict]) -> dict[str, float]:
    """Estimate how many seconds a run spent on training, on waiting for data and on evaluation.

    In ``scalars``, ``time`` is in seconds per iteration and ``data_wait`` a fraction of it; the ``records`` are those
    of :class:`KNNRecords`. Empty if no times were logged.
    """
    if 'time' not in scalars:
        return {}
    steps, times = scalars['time']
    # The median, because the time of an iteration after an evaluation includes the evaluation.
    total = median(times) * steps[-1]
    waits = scalars.get('data_wait', ((), (0.0,)))[1]
    waiting = total * sum(waits) / len(waits)
    evaluation = sum(record['seconds'] for record in records)
    return {'training': total - waiting, 'waiting for data': waiting, 'evaluation': evaluation}


def _read_lines(path: Path) -> list[dict]:
    """Parse the numbers of one JSON object per line, up to a line that a crash has cut."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        lines.append({name: value for name, value in line.items() if isinstance(value, int | float)})
    return [line for line in lines if 'step' in line]
