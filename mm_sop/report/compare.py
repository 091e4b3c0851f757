"""Comparison of several runs on one page."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope

from mm_sop.datasets.randomness import isolated_random_state
from mm_sop.encoders.checkpoint import WeightsError
from mm_sop.encoders.safe_config import check_config
from mm_sop.evaluation.classification.knn_records import KNNRecords, describe_score, format_score
from mm_sop.evaluation.results import ERRORS, EvaluationResults, describe_score_name, format_value
from mm_sop.report.charts import Curve, curves_chart
from mm_sop.report.page import Chart, Details, Section, Table, render_page
from mm_sop.report.report import CURVES, format_duration
from mm_sop.report.run_log import build_model, estimate_seconds, read_config, read_scalars
from mm_sop.report.style import LIGHT, LINE_STYLES
from mm_sop.report.verdict import NETWORKS
from mm_sop.utils.files import write_atomically
from mm_sop.utils.tables import markdown_table

MAX_RUNS = len(LIGHT.series) * len(LINE_STYLES)
"""More lines could not be distinguished."""

_HASH = re.compile(r'\b([0-9a-f]{8})[0-9a-f]{8,}\b')
_ALWAYS_DIFFERENT = ('work_dir',)

# Results of a protocol are not settings; the backbones are compared by the configs.
_NOT_COMPARED = ('found', 'encoder.checkpoint_sha256', 'encoder.backbone')


@dataclass(frozen=True)
class Run:
    """Contents of a run's work directory.

    Attributes:
        name: Name on the page.
        work_dir: Work directory.
        config: Config of the last start.
        scalars: Logged curves by name.
        knn: Records of the k-NN evaluations during training.
        evaluation: Finished records of ``tools/evaluate.py``.
    """

    name: str
    work_dir: Path
    config: Config
    scalars: Mapping[str, Curve]
    knn: Sequence[dict]
    evaluation: Sequence[dict]

    @classmethod
    def read(cls, name: str, work_dir: Path) -> 'Run':
        """Read a work directory; raise FileNotFoundError if it is not that of a run."""
        config, scalars, knn = read_config(work_dir), read_scalars(work_dir), list(KNNRecords(work_dir))
        evaluation = [record for record in EvaluationResults(work_dir / 'evaluation') if record['status'] == 'done']
        return cls(name, work_dir, config, scalars, knn, evaluation)

    @cached_property
    def knn_history(self) -> list[dict]:
        """k-NN records of the preferred network (see :data:`NETWORKS`), in chronological order."""
        measured = {record['network'] for record in self.knn}
        network = next((name for name in NETWORKS if name in measured), None)
        return sorted((record for record in self.knn if record['network'] == network), key=lambda r: r['iter'])

    @cached_property
    def knn_scores(self) -> dict[str, dict]:
        """Scores of the last k-NN record."""
        return self.knn_history[-1]['scores'] if self.knn_history else {}

    @cached_property
    def protocols(self) -> dict[str, dict]:
        """Latest record of every protocol, restricted to the network that was evaluated last."""
        networks = [(record['checkpoint'], record['card'].get('encoder')) for record in self.evaluation]
        pairs = zip(self.evaluation, networks, strict=True)
        return {record['protocol']: record for record, network in pairs if network == networks[-1]}

    @cached_property
    def scores(self) -> dict[tuple[str, str], dict]:
        """Scores of these records by protocol and name."""
        records = self.protocols.items()
        return {(protocol, name): score for protocol, record in records for name, score in record['scores'].items()}

    @cached_property
    def cost(self) -> dict[str, float]:
        """Parameters, seconds, speed and memory, as far as they are known."""
        parameters: dict[str, int] = {}
        try:
            parameters = count_parameters(self.config, str(self.work_dir))
        except WeightsError as error:
            print_log(f'{self.name}: parameters are not counted, as {error}', 'current', logging.WARNING)
        seconds = estimate_seconds(self.scalars, self.knn)
        speed, memory = (self.scalars.get(name, ((), ()))[1] for name in ('images_per_second', 'memory'))
        costs = {
            **parameters,
            'iterations': max((steps[-1] for steps, _ in self.scalars.values()), default=None),
            'images per second': median(speed) if speed else None,
            'peak memory in MiB': max(memory, default=None),
            **{f'seconds of {name}': value for name, value in seconds.items()},
            'seconds in total': sum(seconds.values()) or None,
        }
        return {name: value for name, value in costs.items() if value is not None}


def count_parameters(config: Config, source: str) -> dict[str, int]:
    """Count the trained parameters of a config's model, and the parameters of its backbone.

    ``source`` is the origin of the config, for messages.

    Raises:
        WeightsError: The config does not describe a model that may be built.
    """
    checked = check_config(config, source, 'model', 'data_preprocessor')
    with isolated_random_state(), DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmpretrain')):
        model = build_model(checked, source)
    return {
        'trained parameters': sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        'parameters of the backbone': sum(weight.numel() for weight in model.get_submodule('backbone').parameters()),
    }


def read_runs(work_dirs: Sequence[str | Path]) -> list[Run]:
    """Read several runs, named by the shortest distinct ends of their paths.

    Raises:
        FileNotFoundError: A folder is not the work directory of a run.
        ValueError: A run is given twice, or there are more than :data:`MAX_RUNS`.
    """
    paths = [Path(work_dir).absolute() for work_dir in work_dirs]
    if len(set(paths)) < len(paths):
        raise ValueError('the same run is given twice')
    if len(paths) > MAX_RUNS:
        raise ValueError(f'{len(paths)} runs are too many for one page: compare at most {MAX_RUNS}')
    depth = 1
    while len(names := ['/'.join(path.parts[-depth:]) for path in paths]) > len(set(names)):
        depth += 1
    return [Run.read(name, path) for name, path in zip(names, paths, strict=True)]


def write_comparison(runs: Sequence[Run], folder: str | Path) -> Path:
    """Write ``index.html``, which is self-contained, ``compare.md`` and ``compare.json``; older files are replaced.

    Returns:
        Path of the page.
    """
    evaluated = [evaluation_section(runs), *card_sections(runs)]
    sections = [knn_section(runs), *evaluated, cost_section(runs), config_section(runs)]
    folder, opening, best = Path(folder), f'{len(runs)} runs side by side.', best_run(runs)
    title = 'Comparison of ' + ', '.join(run.name for run in runs)
    page = render_page(title, 'none', opening, best, [*sections, curve_section(runs)])
    write_atomically(folder / 'compare.json', json.dumps(to_dict(runs), indent=1))
    write_atomically(folder / 'compare.md', '\n'.join([f'# {opening}', '', best, *map(to_markdown, sections)]))
    write_atomically(folder / 'index.html', page)
    return folder / 'index.html'


def best_run(runs: Sequence[Run]) -> str:
    """Describe the run with the best first k-NN score; empty if there is none."""
    name = next(iter(_all_names(runs, 'knn_scores')), None)
    if name is None:
        return ''
    best = max((run for run in runs if name in run.knn_scores), key=lambda run: run.knn_scores[name]['accuracy'])
    return f'Best at “{describe_score(name)}” by k-NN: {best.name} with {format_score(best.knn_scores[name])} %.'


def knn_section(runs: Sequence[Run]) -> Section:
    """k-NN accuracies at the end, and over the iterations."""
    names = _all_names(runs, 'knn_scores')
    rows = [[describe_score(name), *(format_score(run.knn_scores.get(name)) for run in runs)] for name in names]
    charts = []
    for name in names:
        curves = {}
        for run in runs:
            points = [record for record in run.knn_history if name in record['scores']]
            accuracies = [100 * point['scores'][name]['accuracy'] for point in points]
            curves[run.name] = [point['iter'] for point in points], accuracies
        charts.append(_chart(f'knn_{name}', describe_score(name), 'k-NN accuracy in %', curves))
    text = 'Accuracy in % after the last evaluation of each run; ± is one standard error.'
    return Section('k-nearest neighbors during training', text, [*_table('accuracy in %', runs, rows), *charts])


def evaluation_section(runs: Sequence[Run]) -> Section:
    """The first metric of every protocol of ``tools/evaluate.py``, and all metrics folded away."""
    by_protocol: dict[str, list[list[str]]] = {}
    for protocol, name in _all_names(runs, 'scores'):
        scores = [run.scores.get((protocol, name)) for run in runs]
        values = ['' if score is None else format_value(score) for score in scores]
        by_protocol.setdefault(protocol, []).append([describe_score_name(name), *values])
    first = [[f'{protocol}: {rows[0][0]}', *rows[0][1:]] for protocol, rows in by_protocol.items()]
    text = (
        f'Fractions in %. {ERRORS} If several networks of a run were evaluated, the last one is shown.'
        if first
        else 'No run has been evaluated yet; use tools/evaluate.py.'
    )
    folded = [
        Details(f'All metrics of {protocol}', table)
        for protocol, rows in by_protocol.items()
        for table in _table('metric', runs, rows)
    ]
    return Section('Evaluation protocols', text, [*_table('metric', runs, first), *folded])


def card_sections(runs: Sequence[Run]) -> list[Section]:
    """Differences between the evaluations; no section unless two runs have been evaluated."""
    if sum(bool(run.protocols) for run in runs) < 2:
        return []
    rows = [[key, *values] for key, values in card_differences(runs).items()]
    text = 'Only fields of the protocol cards that differ; runs with equal fields can be compared.' if rows else 'None.'
    return [Section('Differences of the evaluations', text, _table('protocols: field', runs, rows, wrap=True))]


def cost_section(runs: Sequence[Run]) -> Section:
    """Cost of the runs."""
    rows = []
    for name in _all_names(runs, 'cost'):
        show = format_duration if name.startswith('seconds') else '{:,.0f}'.format
        values = [show(run.cost[name]) if name in run.cost else '' for run in runs]
        rows.append([name.removeprefix('seconds of ').replace('seconds in total', 'total time'), *values])
    text = 'Speed is the median of the logged values; times are estimated from it. Memory is that of the main process.'
    return Section('Cost', text, _table('', runs, rows))


def config_section(runs: Sequence[Run]) -> Section:
    """Keys of the configs that differ."""
    rows = [[key, *values] for key, values in config_differences([run.config.to_dict() for run in runs]).items()]
    text = 'Only keys that differ; – marks a missing key.' if rows else 'The configs are equal.'
    return Section('Differences of the configs', text, _table('key', runs, rows, wrap=True))


def curve_section(runs: Sequence[Run]) -> Section:
    """Every scalar that at least two runs have logged, or all scalars of a single run."""
    charts = []
    for _, unit, names, quiet in CURVES:
        for name in (*names, *quiet):
            curves = {run.name: run.scalars.get(name, ((), ())) for run in runs}
            if sum(len(steps) > 0 for steps, _ in curves.values()) >= min(2, len(runs)):
                charts.append(_chart(name, name.replace('_', ' '), unit, curves))
    return Section('Training', 'A run without a line has not logged the scalar.', charts)


def config_differences(configs: Sequence[Mapping]) -> dict[str, list[str]]:
    """Values of every config by dotted key, for keys whose values differ.

    Items of lists are named by their ``type`` where it is unique.
    """
    flat = [dict(_flatten(config)) for config in configs]
    keys = sorted({key for values in flat for key in values})
    table = {key: [values.get(key, '–') for values in flat] for key in keys if key not in _ALWAYS_DIFFERENT}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def card_differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Values of the fields of the protocol cards that differ between runs, by protocols and dotted key.

    A run without a protocol has an empty value.
    """
    protocols: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for protocol in dict.fromkeys(name for run in runs for name in run.protocols):
        records = [run.protocols.get(protocol) for run in runs]
        cards = [
            record and dict(record['card'], data_folder=record.get('setup', {}).get('data', '')) for record in records
        ]
        for key, values in config_differences([card for card in cards if card is not None]).items():
            present = iter(values)
            row = tuple('' if card is None else _HASH.sub(r'\1…', next(present)) for card in cards)
            protocols.setdefault((key, row), []).append(protocol)
    return {
        f'{", ".join(names)}: {key}': list(values)
        for (key, values), names in protocols.items()
        if not key.startswith(_NOT_COMPARED)
    }


def to_dict(runs: Sequence[Run]) -> dict:
    """All numbers and differences, JSON-serializable."""
    found = {}
    for run in runs:
        evaluation = {f'{protocol}/{name}': score for (protocol, name), score in run.scores.items()}
        found[run.name] = dict(work_dir=str(run.work_dir), knn=run.knn_scores, evaluation=evaluation, cost=run.cost)
    configs = config_differences([run.config.to_dict() for run in runs])
    return dict(runs=found, card_differences=card_differences(runs), config_differences=configs)


def to_markdown(section: Section) -> str:
    """Convert the text and the tables of a section to Markdown."""
    parts = [f'\n## {section.title}\n\n{section.text}\n']
    for item in section.items:
        if isinstance(item, Details):
            parts.append(f'\n### {item.title}\n')
        table = item.content if isinstance(item, Details) else item
        if isinstance(table, Table):
            parts.append(markdown_table(table.heading, table.rows) + '\n')
    return '\n'.join(parts)


def _table(corner: str, runs: Sequence[Run], rows: Sequence[Sequence[str]], wrap: bool = False) -> list[Table]:
    return [Table([corner, *(run.name for run in runs)], rows, wrap)] if rows else []


def _chart(name: str, title: str, unit: str, curves: Mapping[str, Curve]) -> Chart:
    draw = partial(curves_chart, curves, title, unit)
    return Chart.drawn(name, draw, f'{title} over the iterations, one line per run')


def _accuracies(run: Run, name: str) -> Curve:
    points = [record for record in run.knn_history if name in record['scores']]
    return [point['iter'] for point in points], [100 * point['scores'][name]['accuracy'] for point in points]


def _all_names(runs: Sequence[Run], attribute: str) -> list:
    """Keys of a dictionary attribute of all runs, in order of appearance."""
    return list(dict.fromkeys(name for run in runs for name in getattr(run, attribute)))


def _flatten(value: Any, prefix: str = '') -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        items = [(f'{prefix}.{key}' if prefix else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        types = [item.get('type') if isinstance(item, Mapping) else None for item in value]
        labels = [name if types.count(name) == 1 and name else row for row, name in enumerate(types)]
        items = [(f'{prefix}[{label}]', item) for label, item in zip(labels, value, strict=True)]
    else:
        yield prefix, str(value)
        return
    for key, item in items:
        yield from _flatten(item, key)
