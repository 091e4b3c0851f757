"""Results of evaluations: records in JSON beside a readable table, and the data that pages draw."""

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mm_sop.evaluation.context import ProtocolResult, Score
from mm_sop.evaluation.features.identity import content_key
from mm_sop.utils.files import write_atomically
from mm_sop.utils.tables import markdown_table

ERRORS = '± is one standard error, or the standard deviation over repeated trials.'
"""Note below tables of scores."""


class Records:
    """List of JSON records in a file, with a Markdown table beside it; both are always complete."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # Older files have NaN, which is null now.
        text = self.path.read_text() if self.path.is_file() else '[]'
        self.records: list[dict] = json.loads(text, parse_constant=lambda _: None)

    def __iter__(self) -> Iterator[dict]:
        return iter(self.records)

    def write(self) -> None:
        """Write both files."""
        write_atomically(self.path, json.dumps(_without_nan(self.records), indent=1, allow_nan=False))
        write_atomically(self.path.with_suffix('.md'), self.format())

    def format(self) -> str:
        """Format the records as Markdown."""
        raise NotImplementedError


class EvaluationResults(Records):
    """Records in ``results.json``, with ``results.md`` and the folders ``data`` and ``images`` beside it.

    A record has ``protocol``, ``key``, ``checkpoint``, ``setup`` (see :attr:`EvaluationContext.setup`), ``status``
    (``'done'``, ``'skipped'`` or ``'failed'``), ``card`` and ``seconds``; a finished one ``scores`` (``value``,
    ``error`` and ``percent`` by name), any other the ``reason``. ``data`` names the file of what a page shows; once it
    has been drawn, ``images`` has ``name`` and ``text`` of every image. There is one finished record for each protocol,
    checkpoint and setup. Scores that are not finite are written as null.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        super().__init__(self.folder / 'results.json')

    def find(self, key: str) -> dict | None:
        """The finished record of a key, or None."""
        return next((record for record in self.records if record['key'] == key and record['status'] == 'done'), None)

    def add(self, record: dict, data: Mapping[str, Any] | None = None) -> None:
        """Write a record and the data of its page, in place of an older one of the same protocol, checkpoint and setup.

        Skipped or failed protocols never overwrite a result.
        """
        if data:
            name = f'{record["protocol"]}_{Path(record["checkpoint"]).stem}_{content_key(record.get("setup", {}))[:8]}'
            record['data'] = f'{name}.npz'
            write_atomically(self.folder / 'data' / record['data'], pack_data(data))

        def is_kept(other: Mapping) -> bool:
            # Older files have no setup.
            names = ('protocol', 'checkpoint', 'setup') if 'setup' in other else ('protocol', 'checkpoint')
            is_result_above_failure = other['status'] == 'done' and record['status'] != 'done'
            return is_result_above_failure or any(record.get(name) != other[name] for name in names)

        self.records = [*filter(is_kept, self.records), record]
        self.write()

    def read_data(self, record: Mapping) -> dict[str, Any]:
        """Data of a record; empty if it has none."""
        return read_data(self.folder / 'data' / record['data']) if 'data' in record else {}

    def add_images(self, record: dict, images: Sequence[Mapping[str, str]], files: Mapping[str, bytes]) -> None:
        """Store the images drawn of a record's data: ``name`` and ``text`` of each, and contents by file name."""
        for name, content in files.items():
            write_atomically(self.folder / 'images' / name, content)
        record['images'] = list(images)
        self.write()

    def format(self) -> str:
        """Format the records as Markdown, see :func:`format_results`."""
        return format_results(self.records)


def pack_data(data: Mapping[str, Any]) -> bytes:
    """Pack nested dicts and lists into one ``.npz`` file: arrays, and JSON that refers to them."""
    arrays: dict[str, np.ndarray] = {}

    def refer(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        arrays[f'array{len(arrays)}'] = np.asarray(value)
        return {'array': f'array{len(arrays) - 1}'}

    text = json.dumps(data, default=refer)
    buffer = io.BytesIO()
    save: Callable[..., None] = np.savez_compressed  # its stub takes names of arrays for options
    save(buffer, json=np.array(text), **arrays)
    return buffer.getvalue()


def read_data(path: str | Path) -> dict[str, Any]:
    """Read what :func:`pack_data` has packed; tuples return as lists and paths as texts."""
    with np.load(path) as arrays:
        return json.loads(
            str(arrays['json']), object_hook=lambda item: arrays[item['array']] if item.keys() == {'array'} else item
        )


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finished_record(base: Mapping, result: ProtocolResult, seconds: float) -> dict:
    """Make the record of a result from ``protocol``, ``key``, ``checkpoint``, ``setup`` and ``card`` in ``base``."""
    scores = {name: asdict(score) for name, score in result.scores.items()}
    card = dict(base['card'], found=result.card)
    return dict(base, status='done', scores=scores, card=card, seconds=round(seconds, 2))


def format_results(records: Sequence[Mapping]) -> str:
    """Format records as Markdown: a row for each score or failure, and what was skipped."""
    names = differing_setup(records)
    headers = ['checkpoint', *names, 'protocol', 'score', 'value', 'seconds']
    align = [*['left'] * (len(headers) - 2), 'right', 'right']
    rows, skipped = [], []
    for record in records:
        cells, protocol = setup_cells(record, names), record['protocol']
        if record['status'] == 'skipped':
            skipped.append(f'- {" · ".join([protocol, *filter(None, cells)])}: {record["reason"]}')
            continue
        scores = {describe_score_name(name): format_value(score) for name, score in record.get('scores', {}).items()}
        if record['status'] == 'failed':
            scores = {f'failed: {record["reason"]}': ''}
        for number, (name, score) in enumerate(scores.items()):
            seconds = '' if number else f'{record["seconds"]:.1f}'
            rows.append([record['checkpoint'], *cells, protocol, name, score, seconds])
    lines = ['# Evaluation', '', markdown_table(headers, rows, align), '', f'Fractions in percent. {ERRORS}']
    return '\n'.join([*lines, *(['', 'Skipped:', '', *skipped] if skipped else []), ''])


def differing_setup(records: Sequence[Mapping]) -> list[str]:
    """Names of the setup's entries in which records of equally named checkpoints differ."""
    setups: dict[str, list[Mapping]] = {}
    for record in records:
        if 'setup' in record:
            setups.setdefault(record['checkpoint'], []).append(record['setup'])
    names = dict.fromkeys(name for group in setups.values() for setup in group for name in setup)
    return [name for name in names if any(len({setup.get(name) for setup in group}) > 1 for group in setups.values())]


def setup_cells(record: Mapping, names: Sequence[str]) -> list[str]:
    """Some entries of a record's setup as text; empty where an older record lacks them."""
    return [str(record.get('setup', {}).get(name, '')) for name in names]


def describe_score_name(name: str) -> str:
    """Readable name of a score."""
    return name.replace('_', ' ')


def format_value(score: Mapping | Score) -> str:
    """Format a score: value with its error, fractions in percent without the sign; a dash for what is not finite."""
    entry = _without_nan(asdict(score) if isinstance(score, Score) else score)
    if entry['value'] is None:
        return '–'
    factor, digits = (100, 1) if entry['percent'] else (1, 3)
    error = '' if entry['error'] is None else f' ± {factor * entry["error"]:.{digits}f}'
    return f'{factor * entry["value"]:.{digits}f}{error}'
