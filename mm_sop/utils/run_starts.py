"""Records the starts of a run, so that its logs are ordered even if the clock was changed."""

import json
from pathlib import Path
from typing import NamedTuple

from mm_sop.utils.files import write_atomically

_RECORD = 'start.json'


class RunStart(NamedTuple):
    """A start or resumption of a run.

    Attributes:
        folder: Its log folder, named after the time.
        number: Zero-based position among the starts; -1 for starts of versions that recorded none.
        iteration: Iterations that were finished before; None if unknown.
        iters_per_epoch: None if unknown.
    """

    folder: Path
    number: int
    iteration: int | None
    iters_per_epoch: int | None


def record_start(folder: str | Path, iteration: int, iters_per_epoch: int | None = None) -> None:
    """Record a start after all earlier ones of the same work directory.

    Two starts within one second share a folder, whose logs are in order; only the first one is recorded.
    ``folder`` is its log folder, ``iteration`` the number of finished iterations, and ``iters_per_epoch`` converts the
    iteration numbers of earlier logs.
    """
    folder = Path(folder)
    if (folder / _RECORD).is_file():
        return
    number = max((start.number for start in list_starts(folder.parent)), default=-1) + 1
    record = dict(number=number, iteration=iteration, iters_per_epoch=iters_per_epoch)
    write_atomically(folder / _RECORD, json.dumps(record))


def list_starts(work_dir: str | Path) -> list[RunStart]:
    """List the starts of a run in order. Starts without a number come first, sorted by name."""
    folders = {path.parent for name in ('vis_data', _RECORD) for path in Path(work_dir).glob(f'*/{name}')}
    return sorted(map(_read_start, folders), key=lambda start: (start.number, start.folder.name))


def _read_start(folder: Path) -> RunStart:
    try:
        record = json.loads((folder / _RECORD).read_text())
        return RunStart(folder, int(record['number']), int(record['iteration']), record.get('iters_per_epoch'))
    except (OSError, ValueError, KeyError, TypeError):
        return RunStart(folder, -1, None, None)
