"""Results of evaluations on a page."""

import json
from collections.abc import Mapping
from pathlib import Path

from mm_sop.engine.atomic import write_atomically
from mm_sop.evaluation.results import (
    ERRORS,
    EvaluationResults,
    describe_score_name,
    differing_setup,
    format_figure,
    setup_cells,
)
from mm_sop.visualization.page import Details, Section, Table, render_page


def evaluation_sections(folder: str | Path) -> list[Section]:
    """Sections of all evaluations in a folder: an overview, then one for each protocol.

    Args:
        folder: Folder of ``results.json``; without it there are no sections.
    """
    results = EvaluationResults(folder)
    names = differing_setup(results.records)
    done = [record for record in results if record['status'] == 'done']
    sections = [_protocol_section(results, record, names) for record in done]
    others = [
        [record['protocol'], *setup_cells(record, names), record['status'], record['reason']]
        for record in results
        if record['status'] != 'done'
    ]
    if others:
        heading = ['protocol', *names, 'status', 'reason']
        sections.append(Section('Not evaluated', '', [Table(heading, others, wrap=True)]))
    return [_overview(done, names), *sections] if done else sections


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
    figures = f'{seconds:.0f} seconds in all. {ERRORS}'
    page = render_page(f'Evaluation · {checkpoints}', 'neutral', opening, figures, evaluation_sections(folder))
    write_atomically(Path(folder, 'index.html'), page)
    return Path(folder, 'index.html')


def _overview(done: list[Mapping], names: list[str]) -> Section:
    rows = []
    for record in done:
        name, score = next(iter(record['scores'].items()))
        cells = [record['protocol'], record['checkpoint'], *setup_cells(record, names)]
        rows.append([*cells, describe_score_name(name), format_figure(score), f'{record["seconds"]:.1f}'])
    table = Table(['protocol', 'checkpoint', *names, 'first figure', 'value', 'seconds'], rows)
    return Section('Evaluation', 'The first figure of every protocol; shares in per cent.', [table])


def _protocol_section(results: EvaluationResults, record: Mapping, names: list[str]) -> Section:
    rows = [[describe_score_name(name), format_figure(score)] for name, score in record['scores'].items()]
    card = Details('Protocol card', json.dumps(record['card'], indent=1))
    items = [Table(['figure', 'value'], rows), *results.read_pictures(record), card]
    setup = [f'{name} {cell}' for name, cell in zip(names, setup_cells(record, names), strict=True) if cell]
    return Section(' · '.join([record['protocol'], record['checkpoint'], *setup]), '', items)
