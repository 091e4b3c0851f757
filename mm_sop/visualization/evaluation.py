"""Results of evaluations on a page."""

import json
from collections.abc import Mapping
from pathlib import Path

from mm_sop.engine.atomic import write_atomically
from mm_sop.evaluation.results import EvaluationResults, describe_score_name, format_figure
from mm_sop.visualization.page import Details, Section, Table, render_page


def evaluation_sections(folder: str | Path) -> list[Section]:
    """Sections of all evaluations in a folder: an overview, then one for each protocol.

    Args:
        folder: Folder of ``results.json``; without it there are no sections.
    """
    results = EvaluationResults(folder)
    done = [record for record in results if record['status'] == 'done']
    skipped = [[record['protocol'], record['reason']] for record in results if record['status'] == 'skipped']
    sections = [_protocol_section(results, record) for record in done]
    if skipped:
        sections.append(Section('Not evaluated', '', [Table(['protocol', 'reason'], skipped, wrap=True)]))
    return [_overview(done), *sections] if done else sections


def write_evaluation_page(folder: str | Path) -> Path:
    """Write ``index.html`` with everything in a folder of results.

    Args:
        folder: Folder of ``results.json``.

    Returns:
        Path of the page.
    """
    results = EvaluationResults(folder)
    done = [record for record in results if record['status'] == 'done']
    checkpoints = ', '.join(dict.fromkeys(record['checkpoint'] for record in results))
    seconds = sum(record['seconds'] for record in done)
    opening = f'{len(done)} of {len(results.records)} evaluations are done.'
    figures = f'{seconds:.0f} seconds in all. ± is one standard error, or the deviation over repeated tries.'
    page = render_page(f'Evaluation · {checkpoints}', 'neutral', opening, figures, evaluation_sections(folder))
    write_atomically(Path(folder, 'index.html'), page)
    return Path(folder, 'index.html')


def _overview(done: list[Mapping]) -> Section:
    rows = []
    for record in done:
        name, score = next(iter(record['scores'].items()))
        cells = [record['protocol'], record['checkpoint'], describe_score_name(name), format_figure(score)]
        rows.append([*cells, f'{record["seconds"]:.1f}'])
    table = Table(['protocol', 'checkpoint', 'first figure', 'value', 'seconds'], rows)
    return Section('Evaluation', 'The first figure of every protocol; shares in per cent.', [table])


def _protocol_section(results: EvaluationResults, record: Mapping) -> Section:
    rows = [[describe_score_name(name), format_figure(score)] for name, score in record['scores'].items()]
    card = Details('Protocol card', json.dumps(record['card'], indent=1))
    items = [Table(['figure', 'value'], rows), *results.read_pictures(record), card]
    return Section(f'{record["protocol"]} · {record["checkpoint"]}', '', items)
