"""Continues runs that torchrun or Slurm has restarted."""

import json
import os
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from mm_sop.utils.files import write_atomically

RECORD = '.attempt'
"""File in the work directory: the job that trains there, and the checkpoint that it found."""


def restart_count() -> int:
    """How often torchrun (``--max-restarts``) or Slurm (requeue) has started this run again."""
    return sum(int(os.environ.get(name) or 0) for name in ('TORCHELASTIC_RESTART_COUNT', 'SLURM_RESTART_COUNT'))


def continue_restarted(cfg: Config) -> None:
    """Resume a restarted run from its own last checkpoint, without ``--resume``.

    A run that had saved none begins as at first, even if its folder holds a checkpoint of an earlier run.
    """
    job = os.environ.get('SLURM_JOB_ID') or os.environ.get('TORCHELASTIC_RUN_ID')
    folder = cfg.get('work_dir')
    if job is None or folder is None:
        return
    record, pointer = Path(folder, RECORD), Path(folder, 'last_checkpoint')
    found = [pointer.read_text(), pointer.stat().st_mtime_ns] if pointer.is_file() else None
    first = [job, found]
    if not restart_count():
        if (os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or '0') == '0':
            record.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(record, json.dumps(first))
        return
    if found is None or (record.is_file() and json.loads(record.read_text()) == first):
        return
    print_log(f'Restart {restart_count()}: the run goes on from its last checkpoint', 'current')
    cfg.resume, cfg.load_from = True, None
