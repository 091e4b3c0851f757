"""Charts of runs; each function makes a figure in one theme."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from mm_sop.evaluation.classification.knn_records import describe_score
from mm_sop.report.style import Theme

CHART = (4.6, 3.0)
"""Width and height of a chart in inches; legible on the screen of a phone."""

Curve = tuple[Sequence[float], Sequence[float]]
"""Iterations and values."""


def new_chart(size: tuple[float, float] = CHART, **properties: Any) -> tuple[Figure, Axes]:
    """Make a figure with one panel that has the given properties, such as ``title`` and ``xlabel``."""
    figure = Figure(figsize=size)
    axes = figure.add_subplot()
    axes.set(**properties)
    return figure, axes


def curves_chart(
    curves: Mapping[str, Curve], title: str, unit: str, theme: Theme, limits: Mapping[str, Curve] | None = None
) -> Figure:
    """Plot values over iterations by name; ``limits`` are curves for comparison, drawn in gray."""
    limits = limits or {}
    figure, axes = new_chart(title=title, ylabel=unit)
    _label_iterations(axes, 5)
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, label=name, marker='o' if len(steps) == 1 else None)
    for name, (steps, values) in limits.items():
        axes.plot(steps, values, label=name, color=theme.quiet, linestyle=(0, (2, 2)), linewidth=1.2)
    axes.set_xlim(left=0)
    if len(curves) + len(limits) > 1:
        axes.legend(loc='best', handlelength=1.4, borderaxespad=0.2)
    return figure


def knn_chart(
    title: str,
    curve: Sequence[Mapping[str, float]],
    references: Mapping[str, Mapping[str, float]],
    theme: Theme,
    size: tuple[float, float] = CHART,
) -> Figure:
    """Plot accuracy with its standard error over iterations, and references by name as horizontal lines.

    The evaluations in ``curve`` and the references have an ``accuracy`` and a ``standard_error``, the evaluations also
    ``iter``. ``size`` is in inches.
    """
    figure, axes = new_chart(size, title=title, ylabel='k-NN accuracy in %')
    _label_iterations(axes, 5)
    steps = np.array([point['iter'] for point in curve])
    accuracy = 100 * np.array([point['accuracy'] for point in curve])
    error = 100 * np.array([point['standard_error'] for point in curve])
    axes.fill_between(steps, accuracy - error, accuracy + error, color=theme.series[0], alpha=0.18, linewidth=0)
    axes.plot(steps, accuracy, color=theme.series[0], marker='o', markersize=4)
    labels = [(float(accuracy[-1]), f'trained {accuracy[-1]:.1f}', theme.series[0])] if len(curve) else []
    colors = (*theme.series[1:], theme.quiet)
    for index, (name, score) in enumerate(references.items()):
        level, error_of_level = 100 * score['accuracy'], 100 * score['standard_error']
        color = colors[index % len(colors)]
        axes.axhspan(level - error_of_level, level + error_of_level, color=color, alpha=0.08, linewidth=0)
        axes.axhline(level, color=color, linestyle=(0, (4, 2)), linewidth=1.3)
        labels.append((level, f'{name} {level:.1f}', color))
    # At the ends of the lines, moved apart where the labels would overlap.
    low, high = axes.get_ylim()
    labels.sort()
    positions = spread_apart([level for level, *_ in labels], 0.075 * (high - low))
    for position, (_, text, color) in zip(positions, labels, strict=True):
        place: dict[str, Any] = dict(xycoords=('axes fraction', 'data'), va='center', annotation_clip=False)
        axes.annotate(text, (1.02, position), fontsize=9, color=color, **place)
    return figure


def comparison_chart(
    accuracies: Mapping[str, Mapping[str, dict]], references: Mapping[str, Mapping[str, dict]], theme: Theme
) -> Figure:
    """Plot accuracies of several methods, one panel per score.

    By method and score, ``accuracies`` has the ``values`` of the seeds and their ``mean``. So has ``references``, what
    all methods are compared with, drawn as lines.
    """
    scores = list(next(iter(accuracies.values())))
    figure = Figure(figsize=(0.6 + 3 * len(scores), 1.0 + 0.3 * len(accuracies)))
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, score in zip(panels, scores, strict=True):
        for row, summaries in enumerate(accuracies.values()):
            values = [100 * value for value in summaries[score]['values']]
            axes.plot(values, [row] * len(values), 'o', color=theme.series[0], markersize=4, alpha=0.45)
            axes.plot(100 * summaries[score]['mean'], row, '|', color=theme.series[0], markersize=13, markeredgewidth=2)
        for index, (name, summaries) in enumerate(references.items()):
            level, color = 100 * summaries[score]['mean'], theme.series[1:][index % 4]
            axes.axvline(level, color=color, linestyle=(0, (4, 2)), linewidth=1.3, label=name)
        axes.set(title=describe_score(score), xlabel='accuracy in %')
        axes.grid(axis='x')
    panels[0].set_yticks(range(len(accuracies)), list(accuracies))
    panels[0].invert_yaxis()
    if references:
        legend_below(figure, panels[0])
    return figure


def seeds_chart(
    curves: Mapping[str, Mapping[str, Sequence[Curve]]], references: Mapping[str, Mapping[str, float]], theme: Theme
) -> Figure:
    """Plot accuracy over iterations, one panel per score and one thin line per run.

    ``curves`` has iterations and accuracies of several runs by score and kind of run, ``references`` accuracies
    without training by score and name, drawn as lines.
    """
    figure = Figure(figsize=(0.4 + 3.1 * len(curves), 3.2))
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (score, kinds) in zip(panels, curves.items(), strict=True):
        for color, (kind, runs) in zip(theme.series, kinds.items(), strict=False):
            for number, (steps, values) in enumerate(runs):
                label = None if number else kind
                axes.plot(steps, [100 * value for value in values], color=color, linewidth=1.4, label=label)
        levels = references.get(score, {})
        for color, dash, (name, level) in zip(theme.series[::-1], ((4, 2), (1, 1.5)), levels.items(), strict=False):
            axes.axhline(100 * level, color=color, linestyle=(0, dash), linewidth=1.3, label=name)
        axes.set_title(describe_score(score))
        _label_iterations(axes, 4)
    panels[0].set_ylabel('k-NN accuracy in %')
    legend_below(figure, panels[0])
    return figure


def spread_chart(
    curves: Mapping[str, Mapping[str, Sequence[Curve]]], unit: str, theme: Theme, columns: int = 4
) -> Figure:
    """Plot the mean over seeds with a band of one standard deviation over iterations, one panel per score.

    ``curves`` has iterations, the same for all seeds, and values of every seed by score and kind of run. ``columns``
    limits the panels per row.
    """
    columns = min(columns, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(0.4 + 3.1 * columns, 0.4 + 2.8 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for (score, kinds), axes in zip(curves.items(), panels, strict=False):
        for color, (kind, runs) in zip(theme.series, kinds.items(), strict=False):
            steps, values = runs[0][0], np.array([values for _, values in runs])
            mean, std = values.mean(0), values.std(0, ddof=1) if len(runs) > 1 else 0
            axes.fill_between(steps, mean - std, mean + std, color=color, alpha=0.18, linewidth=0)
            axes.plot(steps, mean, color=color, marker='o', markersize=3, label=kind)
        axes.set(title=score, ylabel=unit)
        _label_iterations(axes, 4)
    for axes in panels:
        axes.set_axis_off()
    legend_below(figure, figure.axes[0])
    return figure


def time_chart(seconds: Mapping[str, float], theme: Theme) -> Figure:
    """Draw how the seconds of a run are distributed over activities as one bar."""
    figure, axes = new_chart((CHART[0], 1.25), xlabel='time, %')
    total, left = sum(seconds.values()), 0.0
    for index, (name, value) in enumerate(seconds.items()):
        percent = 100 * value / total
        axes.barh(0, percent, left=left, color=theme.series[index], label=f'{name} {percent:.0f} %', height=0.6)
        left += percent
    axes.set(xlim=(0, 100), yticks=[])
    axes.grid(visible=False)
    axes.spines['left'].set_visible(False)
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=len(seconds), borderaxespad=0, handlelength=0.9)
    return figure


def spread_apart(levels: Sequence[float], distance: float) -> list[float]:
    """Move ascending numbers as little as possible so that neighbors keep a minimum distance.

    Numbers that would touch are spread around their common mean.
    """

    def first(group: Sequence[float]) -> float:
        return sum(group) / len(group) - distance * (len(group) - 1) / 2

    groups: list[list[float]] = []
    for level in levels:
        groups.append([level])
        while len(groups) > 1 and first(groups[-1]) - first(groups[-2]) < distance * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [first(group) + index * distance for group in groups for index in range(len(group))]


def _label_iterations(axes: Axes, ticks: int) -> None:
    axes.set_xlabel('iteration')
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))


def legend_below(figure: Figure, axes: Axes, columns: int | None = None) -> None:
    """Add one legend for panels that show the same kinds of lines, in one row or in at most so many columns."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=min(columns or len(labels), len(labels)))
