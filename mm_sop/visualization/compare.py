"""Several runs side by side on one page."""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from mm_sop.datasets.randomness import isolated_random_state
from mm_sop.engine.atomic import write_atomically
from mm_sop.engine.safe_config import build_untrusted, check_config
from mm_sop.engine.weights import WeightsError
from mm_sop.evaluation.records import KNNRecords, describe_score, format_score
from mm_sop.evaluation.results import ERRORS, EvaluationResults, describe_score_name, format_figure, markdown_row
from mm_sop.visualization.charts import Curve, curves_chart
from mm_sop.visualization.page import Chart, Details, Section, Table, render_page
from mm_sop.visualization.run_log import read_config, read_scalars, time_shares
from mm_sop.visualization.sections import CURVES, format_duration
from mm_sop.visualization.style import LIGHT, LINE_STYLES
from mm_sop.visualization.verdict import NETWORKS

MOST_RUNS = len(LIGHT.series) * len(LINE_STYLES)
"""Lines of more runs could not be told apart."""

_ALWAYS_DIFFERENT = ('work_dir',)

# What a protocol found is no difference of how it was run, and the configs tell of the backbones.
_NOT_COMPARED = ('found', 'encoder.checkpoint_sha256', 'encoder.backbone')


@dataclass(frozen=True)
class Run:
    """What a run has left in its work directory.

    Attributes:
        name: Name on the page.
        work_dir: The directory.
        config: Config of its last start.
        scalars: What it has logged.
        knn: Records of its k-NN evaluations during training.
        evaluation: Finished records of ``tools/evaluate.py``.
    """

    name: str
    work_dir: Path
    config: Config
    scalars: dict[str, Curve]
    knn: Sequence[dict]
    evaluation: Sequence[dict]

    @classmethod
    def read(cls, name: str, work_dir: Path) -> 'Run':
        """Read a work directory.

        Raises:
            FileNotFoundError: It is none of a run.
        """
        config = read_config(work_dir)
        evaluation = [record for record in EvaluationResults(work_dir / 'evaluation') if record['status'] == 'done']
        return cls(name, work_dir, config, read_scalars(work_dir), list(KNNRecords(work_dir)), evaluation)

    @cached_property
    def knn_history(self) -> list[dict]:
        """Records of the network that is of use, the last one last; see :data:`NETWORKS`."""
        measured = {record['network'] for record in self.knn}
        network = next((name for name in NETWORKS if name in measured), None)
        return sorted((record for record in self.knn if record['network'] == network), key=lambda r: r['iter'])

    @cached_property
    def knn_scores(self) -> dict[str, dict]:
        """Scores of the last of these records."""
        return self.knn_history[-1]['scores'] if self.knn_history else {}

    @cached_property
    def judged(self) -> dict[str, dict]:
        """The newest record of every protocol, all of the network that was evaluated last."""
        networks = [(record['checkpoint'], record['card'].get('encoder')) for record in self.evaluation]
        pairs = zip(self.evaluation, networks, strict=True)
        return {record['protocol']: record for record, network in pairs if network == networks[-1]}

    @cached_property
    def figures(self) -> dict[tuple[str, str], dict]:
        """Figures of these records by protocol and name."""
        return {
            (protocol, name): score
            for protocol, record in self.judged.items()
            for name, score in record['scores'].items()
        }

    @cached_property
    def _parameters(self) -> dict[str, int]:
        try:
            return count_parameters(self.config, str(self.work_dir))
        except WeightsError as error:
            print_log(f'{self.name}: parameters are not counted, as {error}', 'current', logging.WARNING)
            return {}

    @cached_property
    def cost(self) -> dict[str, float]:
        """Parameters, seconds, speed and memory, as far as they are known."""
        seconds = time_shares(self.scalars, self.knn)
        speed = self.scalars.get('images_per_second', ((), ()))[1]
        steps, memory = self.scalars.get('memory', ((), ()))
        costs = {
            **self._parameters,
            'iterations': max((steps[-1] for steps, _ in self.scalars.values()), default=None),
            'images per second': median(speed) if speed else None,
            'peak memory in MiB': max(memory, default=None),
            **{f'seconds of {name}': value for name, value in seconds.items()},
            'seconds in all': sum(seconds.values()) or None,
        }
        return {name: value for name, value in costs.items() if value is not None}


def count_parameters(config: Config, source: str) -> dict[str, int]:
    """Parameters of a config's model that are trained, and those of its backbone.

    Args:
        config: The config.
        source: Where it comes from, for messages.

    Raises:
        WeightsError: The config does not describe a model that may be built.
    """
    checked = check_config(config, source, 'model', 'data_preprocessor')
    settings = dict(checked.get('model') or {})
    if 'data_preprocessor' in checked:
        settings.setdefault('data_preprocessor', checked.data_preprocessor)
    with isolated_random_state(), DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmpretrain')):
        model = build_untrusted(MODELS, settings, source)
    return {
        'trained parameters': sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        'parameters of the backbone': sum(weight.numel() for weight in model.backbone.parameters()),
    }


def read_runs(work_dirs: Sequence[str | Path]) -> list[Run]:
    """Read several runs, named by as much of their paths as tells them apart.

    Args:
        work_dirs: Their work directories.

    Raises:
        FileNotFoundError: One of them is none.
        ValueError: One is given twice, or there are more than :data:`MOST_RUNS`.
    """
    paths = [Path(work_dir).absolute() for work_dir in work_dirs]
    if len(set(paths)) < len(paths):
        raise ValueError('the same run is given twice')
    if len(paths) > MOST_RUNS:
        raise ValueError(f'{len(paths)} runs are too many for one page: compare at most {MOST_RUNS}')
    depth = 1
    while len(names := ['/'.join(path.parts[-depth:]) for path in paths]) > len(set(names)):
        depth += 1
    return [Run.read(name, path) for name, path in zip(names, paths, strict=True)]


def write_comparison(runs: Sequence[Run], folder: str | Path) -> Path:
    """Write ``index.html``, which holds all it shows, ``compare.md`` and ``compare.json``.

    Args:
        runs: The runs.
        folder: Where to write; files of these names are replaced.

    Returns:
        Path of the page.
    """
    evaluated = [evaluation_section(runs), *card_sections(runs)]
    sections = [knn_section(runs), *evaluated, cost_section(runs), config_section(runs)]
    opening = f'{len(runs)} runs side by side.'
    best = best_run(runs)
    page = render_page(
        'Comparison of ' + ', '.join(run.name for run in runs), 'none', opening, best, [*sections, curve_section(runs)]
    )
    folder = Path(folder)
    write_atomically(folder / 'compare.json', json.dumps(to_dict(runs), indent=1))
    write_atomically(folder / 'compare.md', '\n'.join([f'# {opening}', '', best, *map(to_markdown, sections)]))
    write_atomically(folder / 'index.html', page)
    return folder / 'index.html'


def best_run(runs: Sequence[Run]) -> str:
    """A sentence about the first k-NN score; empty if there is none."""
    name = next(iter(_all_names(runs, 'knn_scores')), None)
    if name is None:
        return ''
    best = max((run for run in runs if name in run.knn_scores), key=lambda run: run.knn_scores[name]['accuracy'])
    return f'Best at “{describe_score(name)}” by k-NN: {best.name} with {format_score(best.knn_scores[name])} %.'


def knn_section(runs: Sequence[Run]) -> Section:
    """k-NN accuracies at the end, and over the iterations."""
    names = _all_names(runs, 'knn_scores')
    rows = [[describe_score(name), *(format_score(run.knn_scores.get(name)) for run in runs)] for name in names]
    charts = [
        _chart(
            f'knn_{name}',
            describe_score(name),
            'k-NN accuracy in %',
            {run.name: _accuracies(run, name) for run in runs},
        )
        for name in names
    ]
    text = 'Accuracy in per cent after the last evaluation of each run; ± is one standard error.'
    return _section('k-nearest neighbours during training', text, 'in %', runs, rows, charts)


def evaluation_section(runs: Sequence[Run]) -> Section:
    """The first figure of every protocol of ``tools/evaluate.py``, and all of them folded away."""
    by_protocol = {}
    for protocol, name in _all_names(runs, 'figures'):
        values = [_figure(run.figures.get((protocol, name))) for run in runs]
        by_protocol.setdefault(protocol, []).append([describe_score_name(name), *values])
    first = [[f'{protocol}: {rows[0][0]}', *rows[0][1:]] for protocol, rows in by_protocol.items()]
    text = (
        f'Shares in per cent. {ERRORS} Of several networks of a run the one evaluated last is shown.'
        if first
        else 'No run has been evaluated yet: tools/evaluate.py does.'
    )
    section = _section('Evaluation protocols', text, 'figure', runs, first)
    heading = ['figure', *(run.name for run in runs)]
    folded = [Details(f'All of {protocol}', Table(heading, rows)) for protocol, rows in by_protocol.items()]
    return replace(section, items=[*section.items, *folded])


def card_sections(runs: Sequence[Run]) -> list[Section]:
    """How the evaluations differ that stand side by side; nothing unless two runs have been evaluated."""
    if sum(bool(run.judged) for run in runs) < 2:
        return []
    rows = [[key, *values] for key, values in card_differences(runs).items()]
    text = 'Only fields of the protocol cards that differ; runs with equal fields can be compared.' if rows else 'None.'
    return [_section('Differences of the evaluations', text, 'protocols: field', runs, rows, wrap=True)]


def cost_section(runs: Sequence[Run]) -> Section:
    """What the runs have cost."""
    rows = [
        [name.removeprefix('seconds of ').replace('seconds in all', 'time in all'), *(_cost(run, name) for run in runs)]
        for name in _all_names(runs, 'cost')
    ]
    text = 'Speed is the median of what was logged, times are estimated from it. Memory is that of the main process.'
    return _section('Cost', text, '', runs, rows)


def config_section(runs: Sequence[Run]) -> Section:
    """The keys of the configs that differ."""
    rows = [[key, *values] for key, values in config_differences([run.config.to_dict() for run in runs]).items()]
    text = 'Only keys that differ; – is a key that a config lacks.' if rows else 'The configs are equal.'
    return _section('Differences of the configs', text, 'key', runs, rows, wrap=True)


def curve_section(runs: Sequence[Run]) -> Section:
    """Every logged value that at least two runs share, or all of one run."""
    charts = []
    for _, unit, names, quiet in CURVES:
        for name in (*names, *quiet):
            curves = {run.name: run.scalars.get(name, ((), ())) for run in runs}
            if sum(len(steps) > 0 for steps, _ in curves.values()) >= min(2, len(runs)):
                charts.append(_chart(name, name.replace('_', ' '), unit, curves))
    return Section('Training', 'A run without a line has not logged the value.', charts)


def config_differences(configs: Sequence[Mapping]) -> dict[str, list[str]]:
    """Values of every config by dotted key, where they are not all the same.

    Args:
        configs: The configs. Items of lists are named by their ``type`` where it is unique.
    """
    flat = [_flatten(config) for config in configs]
    keys = sorted({key for values in flat for key in values})
    table = {key: [values.get(key, '–') for values in flat] for key in keys if key not in _ALWAYS_DIFFERENT}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def card_differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Values of every field of the protocol cards in which runs differ, by protocols and dotted key.

    Args:
        runs: The runs; one that lacks a protocol has an empty value.
    """
    protocols = {}
    for protocol in dict.fromkeys(name for run in runs for name in run.judged):
        cards = [_comparable_card(run.judged[protocol]) if protocol in run.judged else None for run in runs]
        for key, values in config_differences([card for card in cards if card is not None]).items():
            found = iter(values)
            spread = tuple('' if card is None else _shorten_hashes(next(found)) for card in cards)
            protocols.setdefault((key, spread), []).append(protocol)
    return {
        f'{", ".join(names)}: {key}': list(values)
        for (key, values), names in protocols.items()
        if not key.startswith(_NOT_COMPARED)
    }


def _comparable_card(record: Mapping) -> dict:
    return dict(record['card'], data_folder=record.get('setup', {}).get('data', ''))


def _shorten_hashes(text: str) -> str:
    return re.sub(r'\b([0-9a-f]{8})[0-9a-f]{8,}\b', r'\1…', text)


def to_dict(runs: Sequence[Run]) -> dict:
    """All figures, ready for JSON."""
    return dict(
        runs={
            run.name: dict(
                work_dir=str(run.work_dir),
                knn=run.knn_scores,
                evaluation={f'{protocol}/{name}': score for (protocol, name), score in run.figures.items()},
                cost=run.cost,
            )
            for run in runs
        },
        card_differences=card_differences(runs),
        config_differences=config_differences([run.config.to_dict() for run in runs]),
    )


def to_markdown(section: Section) -> str:
    """Text and tables of a section."""
    parts = [f'\n## {section.title}\n\n{section.text}\n']
    for item in section.items:
        if isinstance(item, Details):
            parts.append(f'\n### {item.title}\n')
        table = item.content if isinstance(item, Details) else item
        if isinstance(table, Table):
            lines = [table.heading, ['---', *['---:'] * (len(table.heading) - 1)], *table.rows]
            parts.append('\n'.join(map(markdown_row, lines)) + '\n')
    return '\n'.join(parts)


def _section(
    title: str,
    text: str,
    corner: str,
    runs: Sequence[Run],
    rows: Sequence[Sequence[str]],
    charts: Sequence[Chart] = (),
    wrap: bool = False,
) -> Section:
    table = Table([corner, *(run.name for run in runs)], rows, wrap)
    return Section(title, text, [table, *charts] if rows else charts)


def _chart(name: str, title: str, unit: str, curves: Mapping[str, Curve]) -> Chart:
    draw: Callable = partial(curves_chart, curves, title, unit)
    return Chart.drawn(name, draw, f'{title} over the iterations, a line for each run')


def _accuracies(run: Run, name: str) -> Curve:
    points = [record for record in run.knn_history if name in record['scores']]
    return [point['iter'] for point in points], [100 * point['scores'][name]['accuracy'] for point in points]


def _all_names(runs: Sequence[Run], attribute: str) -> list:
    """Keys of an attribute of all runs in the order of their appearance."""
    return list(dict.fromkeys(name for run in runs for name in getattr(run, attribute)))


def _figure(score: Mapping | None) -> str:
    return '' if score is None else format_figure(score)


def _cost(run: Run, name: str) -> str:
    value = run.cost.get(name)
    if value is None:
        return ''
    return format_duration(value) if name.startswith('seconds') else f'{value:,.0f}'


def _flatten(value, prefix: str = '') -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        parts = [(f'{prefix}.{key}' if prefix else str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        types = [part.get('type') if isinstance(part, Mapping) else None for part in value]
        labels = [name if types.count(name) == 1 and name else row for row, name in enumerate(types)]
        parts = [(f'{prefix}[{label}]', part) for label, part in zip(labels, value, strict=True)]
    else:
        return {prefix: str(value)}
    return {key: leaf for name, part in parts for key, leaf in _flatten(part, name).items()}
