"""In which order the logs of a work directory were written, whatever the clock said."""

import json
from pathlib import Path
from typing import NamedTuple

from mm_sop.engine.atomic import write_atomically

_RECORD = 'start.json'


class RunStart(NamedTuple):
    """A start or resumption of a run.

    Attributes:
        folder: Its folder of logs, named by the time.
        number: Zero-based position among the starts; -1 for one that was recorded before there were numbers.
        iteration: Finished iterations with which it began; None if unknown.
        iters_per_epoch: Iterations of an epoch; None if unknown.
    """

    folder: Path
    number: int
    iteration: int | None
    iters_per_epoch: int | None


def record_start(folder: str | Path, iteration: int, iters_per_epoch: int | None = None) -> None:
    """Number a start behind all earlier ones of the same work directory.

    Two starts within one second share a folder, and its logs are in order: the first of them counts.

    Args:
        folder: Folder of its logs.
        iteration: Finished iterations with which it begins.
        iters_per_epoch: Iterations of an epoch, by which the numbers of earlier iterations are translated.
    """
    folder = Path(folder)
    if (folder / _RECORD).is_file():
        return
    number = max((start.number for start in list_starts(folder.parent)), default=-1) + 1
    record = dict(number=number, iteration=iteration, iters_per_epoch=iters_per_epoch)
    write_atomically(folder / _RECORD, json.dumps(record))


def list_starts(work_dir: str | Path) -> list[RunStart]:
    """The starts of a run, the last one last.

    The numbers decide; starts without one come first, by name.

    Args:
        work_dir: Work directory of the run.
    """
    folders = {path.parent for name in ('vis_data', _RECORD) for path in Path(work_dir).glob(f'*/{name}')}
    return sorted(map(_read_start, folders), key=lambda start: (start.number, start.folder.name))


def _read_start(folder: Path) -> RunStart:
    try:
        record = json.loads((folder / _RECORD).read_text())
        return RunStart(folder, int(record['number']), int(record['iteration']), record.get('iters_per_epoch'))
    except (OSError, ValueError, KeyError, TypeError):
        return RunStart(folder, -1, None, None)
