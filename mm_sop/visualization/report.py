"""Report of a run as one page with pictures."""

import json
from pathlib import Path

from mmengine.config import Config
from torch import nn

from mm_sop.engine.atomic import make_folder_atomically
from mm_sop.evaluation.records import KNNRecords
from mm_sop.visualization import sections
from mm_sop.visualization.evaluation import evaluation_sections
from mm_sop.visualization.page import render_page
from mm_sop.visualization.run_log import read_scalars, time_shares
from mm_sop.visualization.settings import describe_settings
from mm_sop.visualization.verdict import judge

CEILING = 'supervised_ceiling.json'
"""Record of a network trained with labels, beside ``knn.json``."""


def write_report(work_dir: str | Path, config: Config, model: nn.Module | None = None, seed: int = 0) -> Path:
    """Write ``report/index.html``, its pictures as PNG files and ``report.json`` into a work directory.

    The page holds everything it shows. The pictures it is about are drawn at random, the same for every run with the
    same data and seed. An older report is replaced when the new one is complete.

    Args:
        work_dir: Work directory of the run, with its logs and ``knn.json``.
        config: Config of the run.
        model: The trained model. Defaults to None, for a report without pictures of what it sees.
        seed: Seed for the choice of pictures.

    Returns:
        Path of the page.
    """
    work_dir = Path(work_dir)
    records, scalars, ceiling = list(KNNRecords(work_dir)), read_scalars(work_dir), read_ceiling(work_dir)
    verdict = judge(records)
    settings, seconds = describe_settings(config, model, scalars), time_shares(scalars, records)
    pictures, galleries = sections.picture_sections(config, model, seed)
    parts = [
        sections.lead_section(records, verdict, ceiling),
        sections.knn_section(records, verdict, ceiling),
        *evaluation_sections(work_dir / 'evaluation'),
        sections.curve_section(scalars),
        *pictures,
        sections.run_section(config, settings, seconds),
    ]
    title = f'{settings.get("algorithm", "Run")} · {work_dir.absolute().name}'
    page = render_page(title, verdict.answer, verdict.opening, verdict.figures, parts)
    files = {name: content for part in parts for item in part.items for name, content in item.files.items()}
    data = dict(
        **verdict.to_dict(), seconds=seconds, settings=settings, galleries=galleries, seed=seed, files=sorted(files)
    )
    _write_folder(work_dir / 'report', {**files, 'report.json': json.dumps(data, indent=1), 'index.html': page})
    return work_dir / 'report' / 'index.html'


def read_ceiling(work_dir: Path) -> dict | None:
    """The record of the supervised ceiling, or None if it was not measured."""
    path = work_dir / CEILING
    return json.loads(path.read_text()) if path.is_file() else None


def _write_folder(folder: Path, files: dict[str, bytes | str]) -> None:
    """Write all files into a new folder, then let it take the place of the old one."""
    with make_folder_atomically(folder, replace=True) as unfinished:
        for name, content in files.items():
            data = content.encode(errors='surrogateescape') if isinstance(content, str) else content
            (unfinished / name).write_bytes(data)
