"""Results of evaluations: JSON beside a readable table and pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mm_sop.engine.atomic import write_atomically
from mm_sop.evaluation.protocol import ProtocolResult, Score
from mm_sop.visualization.page import Chart, Photo


class EvaluationResults:
    """Records in ``results.json``, with ``results.md`` and the folder ``pictures`` beside it.

    A record has ``protocol``, ``key``, ``checkpoint``, ``status`` (``'done'`` or ``'skipped'``), ``card`` and
    ``seconds``; a finished one ``scores`` (``value``, ``error`` and ``percent`` by name) and ``pictures`` (``name`` and
    ``text``); a skipped one the ``reason``. There is one record for each protocol and checkpoint.

    Args:
        folder: Folder of the files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / 'results.json'
        self.records = json.loads(self.path.read_text()) if self.path.is_file() else []

    def __iter__(self):
        return iter(self.records)

    def find(self, key: str) -> dict | None:
        """The finished record of a key, or None."""
        return next((record for record in self.records if record['key'] == key and record['status'] == 'done'), None)

    def add(self, record: dict, pictures: Sequence[Chart | Photo] = ()) -> None:
        """Write a record with its pictures, in place of an older one of the same protocol and checkpoint.

        What was skipped for want of data takes no finished record away.

        Args:
            record: The record, ready for JSON.
            pictures: Its pictures.
        """
        for picture in pictures:
            for name, content in picture.files.items():
                write_atomically(self.folder / 'pictures' / name, content)
        self.records = [other for other in self.records if not _replaces(record, other)]
        self.records.append(record)
        write_atomically(self.path, json.dumps(self.records, indent=1))
        write_atomically(self.path.with_suffix('.md'), format_results(self.records))

    def read_pictures(self, record: Mapping) -> list[Chart | Photo]:
        """Pictures of a record."""
        return [self._read_picture(**picture) for picture in record.get('pictures', ())]

    def _read_picture(self, name: str, text: str) -> Chart | Photo:
        light, dark = (self.folder / 'pictures' / f'{name}{ending}.png' for ending in ('', '_dark'))
        if dark.is_file():
            return Chart(name, light.read_bytes(), dark.read_bytes(), text)
        return Photo(name, light.read_bytes(), text)


def _replaces(record: Mapping, other: Mapping) -> bool:
    same = all(record[name] == other[name] for name in ('protocol', 'checkpoint'))
    return same and not (record['status'] == 'skipped' and other['status'] == 'done')


def finished_record(base: Mapping, result: ProtocolResult, seconds: float) -> tuple[dict, list[Chart | Photo]]:
    """Put a result into a record; its pictures get names that are unique in the folder.

    Args:
        base: ``protocol``, ``key``, ``checkpoint`` and ``card``.
        result: What the protocol found.
        seconds: What it took.

    Returns:
        Record and renamed pictures.
    """
    renamed = [_rename(picture, f'{base["protocol"]}_{Path(base["checkpoint"]).stem}_') for picture in result.pictures]
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
    """Set records as a Markdown page with a row for each figure, and with what was skipped.

    Args:
        records: Records as in :class:`EvaluationResults`.
    """
    lines = ['# Evaluation', '', '| checkpoint | protocol | figure | value | seconds |', '|---|---|---|---:|---:|']
    for record in records:
        if record['status'] == 'done':
            lines += _rows(record)
    skipped = [f'- {record["protocol"]}: {record["reason"]}' for record in records if record['status'] == 'skipped']
    lines += ['', 'Shares in per cent; ± is one standard error, or the deviation over repeated tries.']
    return '\n'.join([*lines, *(['', 'Skipped:', '', *skipped] if skipped else []), ''])


def _rows(record: Mapping) -> list[str]:
    cells = [record['checkpoint'], record['protocol']]
    rows = []
    for name, score in record['scores'].items():
        seconds = '' if rows else f'{record["seconds"]:.1f}'
        rows.append(f'| {" | ".join([*cells, describe_score_name(name), format_figure(score), seconds])} |')
    return rows


def describe_score_name(name: str) -> str:
    """Readable name of a figure."""
    return name.replace('_', ' ')


def format_figure(score: Mapping | Score) -> str:
    """Value with its error, shares in per cent without the sign."""
    score = asdict(score) if isinstance(score, Score) else score
    factor, digits = (100, 1) if score['percent'] else (1, 3)
    error = '' if score['error'] is None else f' ± {factor * score["error"]:.{digits}f}'
    return f'{factor * score["value"]:.{digits}f}{error}'
