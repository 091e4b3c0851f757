"""The k-NN results of a run, kept as JSON beside a readable table."""

import json
import re
from pathlib import Path

from mm_sop.engine.atomic import write_atomically

TITLES = dict(raw_pixels='raw 16 x 16 pixels', color_histogram='colour histogram', supervised='supervised ceiling')


class KNNRecords:
    """List of k-NN results in ``knn.json``, with ``knn.md`` beside it, always complete and never half-written.

    A record has ``network`` (``'teacher'``, ``'raw_pixels'``, ...), ``iter`` and ``epoch`` (None without training),
    ``seconds`` and ``scores`` by name, and in runs ``iters_per_epoch``, which ``iter`` refers to.

    Args:
        work_dir: Folder of the two files.
    """

    def __init__(self, work_dir: str | Path) -> None:
        self.path = Path(work_dir, 'knn.json')
        self.records = json.loads(self.path.read_text()) if self.path.is_file() else []

    def __iter__(self):
        return iter(self.records)

    def forget_after(self, iteration: int, iters_per_epoch: int) -> None:
        """Drop what an earlier run measured beyond the position at which this one starts; at 0 everything.

        Records of a run with epochs of another length are renumbered, as the position of a resumed run is.

        Args:
            iteration: First iteration of the run.
            iters_per_epoch: Length of its epochs.
        """
        for record in self.records:
            length = record.get('iters_per_epoch', iters_per_epoch)
            if record['iter'] is not None and length != iters_per_epoch:
                record.update(iter=record['iter'] * iters_per_epoch // length, iters_per_epoch=iters_per_epoch)
        kept = [record for record in self.records if record['iter'] is None or record['iter'] <= iteration]
        self.records = kept if iteration > 0 else []

    def find(self, network: str, iteration: int | None) -> dict | None:
        """The record of a network at an iteration, or None."""
        found = [record for record in self.records if (record['network'], record['iter']) == (network, iteration)]
        return found[0] if found else None

    def add(self, record: dict, write: bool = True) -> None:
        """Add a record, in place of an older one of the same network and iteration.

        Args:
            record: The record.
            write: Whether to write both files, as one process of a run should.
        """
        older = self.find(record['network'], record['iter'])
        if older is not None:
            self.records.remove(older)
        self.records.append(record)
        if write:
            write_atomically(self.path, json.dumps(self.records, indent=1))
            write_atomically(self.path.with_suffix('.md'), format_table(self.records))


def format_table(records: list[dict]) -> str:
    """Set records as a Markdown table, in percent with standard errors.

    Args:
        records: Records as in :class:`KNNRecords`, without training first.
    """
    names = list(dict.fromkeys(name for record in records for name in record['scores']))
    rows = [['features', 'iteration', *map(describe_score, names)]]
    rows.append(['---', '---:', *['---:'] * len(names)])
    for record in sorted(records, key=lambda record: (record['iter'] is not None, record['iter'] or 0)):
        cells = [format_score(record['scores'].get(name)) for name in names]
        rows.append([describe(record), '' if record['iter'] is None else str(record['iter']), *cells])
    table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
    return (
        f'# k-nearest-neighbour accuracy in percent\n\n{table}\n\n± one standard error: over objects (bootstrap) where '
        'the queries show objects that are not in the bank, else over pictures (binomial).\n'
    )


def describe(record: dict) -> str:
    """Name of the features that a record is about."""
    if record['network'] in TITLES:
        return TITLES[record['network']]
    return f'{record["network"]}, untrained' if record['iter'] == 0 else record['network']


def describe_score(name: str) -> str:
    """Readable name of a score: ``seen_class_k20_patch`` becomes ``seen class, k = 20, patch``."""
    return re.sub(r'_k(\d+)_?', r', k = \1, ', name).removesuffix(', ').replace('_', ' ')


def format_score(score: dict | None) -> str:
    """Accuracy with its standard error in percent, without the sign; empty for None."""
    return '' if score is None else f'{100 * score["accuracy"]:.1f} ± {100 * score["standard_error"]:.1f}'
