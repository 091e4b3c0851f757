"""Results of evaluations: JSON beside a readable table and pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mm_sop.engine.atomic import write_atomically
from mm_sop.evaluation.cache import content_key
from mm_sop.evaluation.protocol import ProtocolResult, Score
from mm_sop.visualization.page import Chart, Photo

ERRORS = '± is one standard error, or the deviation over repeated tries.'
"""What stands below tables of figures."""


class EvaluationResults:
    """Records in ``results.json``, with ``results.md`` and the folder ``pictures`` beside it.

    A record has ``protocol``, ``key``, ``checkpoint``, ``setup`` (see :attr:`EvaluationContext.setup`), ``status``
    (``'done'``, ``'skipped'`` or ``'failed'``), ``card`` and ``seconds``; a finished one ``scores`` (``value``,
    ``error`` and ``percent`` by name) and ``pictures`` (``name`` and ``text``), any other the ``reason``. There is one
    finished record for each protocol, checkpoint and setup. Figures that are not finite are written as null.

    Args:
        folder: Folder of the files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / 'results.json'
        self.records = _read_records(self.path) if self.path.is_file() else []

    def __iter__(self):
        return iter(self.records)

    def find(self, key: str) -> dict | None:
        """The finished record of a key, or None."""
        return next((record for record in self.records if record['key'] == key and record['status'] == 'done'), None)

    def add(self, record: dict, pictures: Sequence[Chart | Photo] = ()) -> None:
        """Write a record with its pictures, in place of an older one of the same protocol, checkpoint and setup.

        What was skipped or failed takes no finished record away.

        Args:
            record: The record, ready for JSON.
            pictures: Its pictures.
        """
        for picture in pictures:
            for name, content in picture.files.items():
                write_atomically(self.folder / 'pictures' / name, content)
        self.records = [other for other in self.records if not _replaces(record, other)]
        self.records.append(record)
        write_atomically(self.path, json.dumps(_without_nan(self.records), indent=1, allow_nan=False))
        write_atomically(self.path.with_suffix('.md'), format_results(self.records))

    def read_pictures(self, record: Mapping) -> list[Chart | Photo]:
        """Pictures of a record."""
        return [self._read_picture(**picture) for picture in record.get('pictures', ())]

    def _read_picture(self, name: str, text: str) -> Chart | Photo:
        light, dark = (self.folder / 'pictures' / f'{name}{ending}.png' for ending in ('', '_dark'))
        if dark.is_file():
            return Chart(name, light.read_bytes(), dark.read_bytes(), text)
        return Photo(name, light.read_bytes(), text)


def _read_records(path: Path) -> list[dict]:
    # Written before figures that are not finite became null.
    return json.loads(path.read_text(), parse_constant=lambda _: None)


def _without_nan(value):
    """The same for JSON, which knows neither NaN nor infinity."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replaces(record: Mapping, other: Mapping) -> bool:
    # Older files know no setup.
    names = ('protocol', 'checkpoint', 'setup') if 'setup' in other else ('protocol', 'checkpoint')
    same = all(record.get(name) == other[name] for name in names)
    return same and (record['status'] == 'done' or other['status'] != 'done')


def finished_record(base: Mapping, result: ProtocolResult, seconds: float) -> tuple[dict, list[Chart | Photo]]:
    """Put a result into a record; its pictures get names that are unique in the folder.

    Args:
        base: ``protocol``, ``key``, ``checkpoint``, ``setup`` and ``card``.
        result: What the protocol found.
        seconds: What it took.

    Returns:
        Record and renamed pictures.
    """
    prefix = f'{base["protocol"]}_{Path(base["checkpoint"]).stem}_{content_key(base.get("setup", {}))[:8]}_'
    renamed = [_rename(picture, prefix) for picture in result.pictures]
    record = dict(
        base,
        status='done',
        scores={name: asdict(score) for name, score in result.scores.items()},
        card=dict(base['card'], found=result.card),
        pictures=[dict(name=picture.name, text=picture.text) for picture in renamed],
        seconds=round(seconds, 2),
    )
    return record, renamed


def _rename(picture: Chart | Photo, prefix: str) -> Chart | Photo:
    return type(picture)(**dict(vars(picture), name=prefix + picture.name))


def format_results(records: Sequence[Mapping]) -> str:
    """Set records as a Markdown page with a row for each figure or failure, and with what was skipped.

    Args:
        records: Records as in :class:`EvaluationResults`.
    """
    names = differing_setup(records)
    heading = ['checkpoint', *names, 'protocol', 'figure', 'value', 'seconds']
    lines = ['# Evaluation', '', markdown_row(heading), f'|{"---|" * (len(heading) - 2)}---:|---:|']
    for record in records:
        if record['status'] != 'skipped':
            lines += _rows(record, names)
    skipped = [
        f'- {" · ".join([record["protocol"], *filter(None, setup_cells(record, names))])}: {record["reason"]}'
        for record in records
        if record['status'] == 'skipped'
    ]
    lines += ['', f'Shares in per cent. {ERRORS}']
    return '\n'.join([*lines, *(['', 'Skipped:', '', *skipped] if skipped else []), ''])


def differing_setup(records: Sequence[Mapping]) -> list[str]:
    """Names of what differs between the setups of records whose checkpoints share a name.

    Args:
        records: Records as in :class:`EvaluationResults`.
    """
    setups = {}
    for record in records:
        if 'setup' in record:
            setups.setdefault(record['checkpoint'], []).append(record['setup'])
    names = dict.fromkeys(name for group in setups.values() for setup in group for name in setup)
    return [name for name in names if any(len({setup.get(name) for setup in group}) > 1 for group in setups.values())]


def setup_cells(record: Mapping, names: Sequence[str]) -> list[str]:
    """Some parts of a record's setup as text; empty where an older record does not know them."""
    return [str(record.get('setup', {}).get(name, '')) for name in names]


def _rows(record: Mapping, names: Sequence[str]) -> list[str]:
    scores = {describe_score_name(name): format_figure(score) for name, score in record.get('scores', {}).items()}
    if record['status'] == 'failed':
        scores = {f'failed: {record["reason"]}': ''}
    rows = []
    for name, figure in scores.items():
        seconds = '' if rows else f'{record["seconds"]:.1f}'
        cells = [record['checkpoint'], *setup_cells(record, names), record['protocol'], name, figure, seconds]
        rows.append(markdown_row(cells))
    return rows


def markdown_row(cells: Sequence[str]) -> str:
    """One row of a Markdown table."""
    escaped = [cell.replace('|', '\\|').replace('\n', ' ') for cell in cells]
    return f'| {" | ".join(escaped)} |'


def describe_score_name(name: str) -> str:
    """Readable name of a figure."""
    return name.replace('_', ' ')


def format_figure(score: Mapping | Score) -> str:
    """Value with its error, shares in per cent without the sign; a dash for what is not finite."""
    score = _without_nan(asdict(score) if isinstance(score, Score) else score)
    if score['value'] is None:
        return '–'
    factor, digits = (100, 1) if score['percent'] else (1, 3)
    error = '' if score['error'] is None else f' ± {factor * score["error"]:.{digits}f}'
    return f'{factor * score["value"]:.{digits}f}{error}'
