"""Report of a run: one page with charts and images."""

import json
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from torch import nn

from mm_sop.evaluation.classification.knn_records import KNNRecords
from mm_sop.report import sections
from mm_sop.report.evaluation import evaluation_sections
from mm_sop.report.page import render_page
from mm_sop.report.run_log import estimate_seconds, read_scalars
from mm_sop.report.verdict import judge
from mm_sop.utils.files import make_folder_atomically

CEILING = 'supervised_ceiling.json'
"""Record of a network trained with labels, beside ``knn.json``."""


def write_report(work_dir: str | Path, config: Config, model: nn.Module | None = None, seed: int = 0) -> Path:
    """Write ``report/index.html``, its images as PNG files and ``report.json`` into a work directory.

    The page is self-contained. The shown images are chosen at random, the same for all runs with the same data and
    seed. An older report is replaced when the new one is complete.

    Args:
        work_dir: Work directory of the run, with its logs and ``knn.json``.
        config: Config of the run.
        model: The trained model. Defaults to None: the report shows no images.
        seed: Seed for the choice of images.

    Returns:
        Path of the page.
    """
    work_dir = Path(work_dir)
    records, scalars, ceiling = list(KNNRecords(work_dir)), read_scalars(work_dir), read_ceiling(work_dir)
    verdict = judge(records)
    settings = sections.describe_settings(config, model, scalars)
    seconds = estimate_seconds(scalars, records)
    images, galleries = sections.image_sections(config, model, seed)
    parts = [
        sections.lead_section(records, verdict, ceiling),
        sections.knn_section(records, verdict, ceiling),
        *evaluation_sections(work_dir / 'evaluation'),
        sections.curve_section(scalars),
        *images,
        sections.run_section(config, settings, seconds),
    ]
    title = f'{settings.get("algorithm", "Run")} · {work_dir.absolute().name}'
    page = render_page(title, verdict.answer, verdict.opening, verdict.evidence, parts)
    files = {name: content for part in parts for item in part.items for name, content in item.files.items()}
    data = dict(
        **verdict.to_dict(), seconds=seconds, settings=settings, galleries=galleries, seed=seed, files=sorted(files)
    )
    _write_folder(work_dir / 'report', {**files, 'report.json': json.dumps(data, indent=1), 'index.html': page})
    return work_dir / 'report' / 'index.html'


def read_ceiling(work_dir: Path) -> dict | None:
    """Read the record of the supervised ceiling; None if it was not measured."""
    path = work_dir / CEILING
    return json.loads(path.read_text()) if path.is_file() else None


def _write_folder(folder: Path, files: Mapping[str, bytes | str]) -> None:
    """Write all files into a new folder, which then replaces the old one."""
    with make_folder_atomically(folder, replace=True) as unfinished:
        for name, content in files.items():
            data = content.encode(errors='surrogateescape') if isinstance(content, str) else content
            (unfinished / name).write_bytes(data)
