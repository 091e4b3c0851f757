"""What a run has logged."""

import json
from pathlib import Path
from statistics import median

from mmengine.config import Config

from mm_sop.engine.run_starts import list_starts
from mm_sop.engine.stored_config import read_stored_config
from mm_sop.visualization.charts import Curve


def read_config(work_dir: str | Path) -> Config:
    """Config of a run's last start, read without running it and unchecked: see :func:`check_config`.

    Args:
        work_dir: Work directory of the run.

    Raises:
        FileNotFoundError: It is none.
        WeightsError: The config is damaged.
    """
    found = [path for start in list_starts(work_dir) if (path := start.folder / 'vis_data/config.py').is_file()]
    if not found:
        raise FileNotFoundError(f'{work_dir} is not the work directory of a run: it has no */vis_data/config.py')
    return read_stored_config(found[-1])


def read_scalars(work_dir: str | Path) -> dict[str, Curve]:
    """Read the scalars of a run and of its resumptions as one history.

    Where a later start repeats iterations, its values replace the earlier ones. Which one is later is recorded with
    every start (:func:`record_start`), as the clock may have been set back. Where a later start has epochs of another
    length, earlier iterations are renumbered, as the position of the run is.

    Args:
        work_dir: Work directory of the run.

    Returns:
        Iterations and values by name.
    """
    history, length = {}, None
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
    names = dict.fromkeys(name for step in sorted(history) for name in history[step])
    return {name: _curve(history, name) for name in names}


def time_shares(scalars: dict[str, Curve], records: list[dict]) -> dict[str, float]:
    """Estimate how many seconds a run spent on training, on waiting for data and on evaluation.

    Args:
        scalars: Logged values; ``time`` is that of an iteration.
        records: Records of :class:`KNNRecords`.

    Returns:
        Seconds by activity; empty if no times were logged.
    """
    if 'time' not in scalars:
        return {}
    steps, times = scalars['time']
    # The median, because an iteration after an evaluation includes it.
    total = median(times) * steps[-1]
    waits = scalars.get('data_wait', ((), (0.0,)))[1]
    waiting = total * sum(waits) / len(waits)
    evaluation = sum(record['seconds'] for record in records)
    return {'training': total - waiting, 'waiting for data': waiting, 'evaluation': evaluation}


def _curve(history: dict[int, dict], name: str) -> Curve:
    steps = [step for step in sorted(history) if name in history[step]]
    return steps, [history[step][name] for step in steps]


def _read_lines(path: Path) -> list[dict]:
    """Parse one JSON object a line; a last line that a crash has cut is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        lines.append({name: value for name, value in line.items() if isinstance(value, int | float)})
    return [line for line in lines if 'step' in line]
