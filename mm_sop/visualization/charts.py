"""Charts of a run; each function makes a figure of one theme."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from mm_sop.evaluation.records import describe_score
from mm_sop.visualization.style import Theme

CHART = (4.6, 3.0)
"""Width and height of a chart in inches; it fits a telephone's screen at a readable size."""

Curve = tuple[Sequence[float], Sequence[float]]


def curves_chart(
    curves: dict[str, Curve],
    title: str,
    unit: str,
    theme: Theme,
    limits: dict[str, Curve] | None = None,
) -> Figure:
    """Values over iterations.

    Args:
        curves: Iterations and values by name.
        title: What the values are.
        unit: Their unit, for the axis.
        theme: Colours.
        limits: Curves that serve for comparison, drawn quietly.
    """
    figure, axes = _new_chart(title, unit)
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, label=name, marker='o' if len(steps) == 1 else None)
    for name, (steps, values) in (limits or {}).items():
        axes.plot(steps, values, label=name, color=theme.quiet, linestyle=(0, (2, 2)), linewidth=1.2)
    axes.set_xlim(left=0)
    if len(curves) + len(limits or {}) > 1:
        axes.legend(loc='best', handlelength=1.4, borderaxespad=0.2)
    return figure


def knn_chart(title: str, curve: Sequence[dict], references: dict[str, dict], theme: Theme, size=CHART) -> Figure:
    """Accuracy over iterations with its standard error, and others as horizontal lines.

    Args:
        title: What is classified.
        curve: ``iter``, ``accuracy`` and ``standard_error`` of every evaluation.
        references: ``accuracy`` and ``standard_error`` by name.
        theme: Colours.
        size: Width and height in inches.
    """
    figure, axes = _new_chart(title, 'k-NN accuracy in %', size)
    steps = np.array([point['iter'] for point in curve])
    accuracy = 100 * np.array([point['accuracy'] for point in curve])
    error = 100 * np.array([point['standard_error'] for point in curve])
    axes.fill_between(steps, accuracy - error, accuracy + error, color=theme.series[0], alpha=0.18, linewidth=0)
    axes.plot(steps, accuracy, color=theme.series[0], marker='o', markersize=4)
    labels = [(accuracy[-1], f'trained {accuracy[-1]:.1f}', theme.series[0])] if len(curve) else []
    colors = (*theme.series[1:], theme.quiet)
    for index, (name, score) in enumerate(references.items()):
        level, spread, color = 100 * score['accuracy'], 100 * score['standard_error'], colors[index % len(colors)]
        axes.axhspan(level - spread, level + spread, color=color, alpha=0.08, linewidth=0)
        axes.axhline(level, color=color, linestyle=(0, (4, 2)), linewidth=1.3)
        labels.append((level, f'{name} {level:.1f}', color))
    _label_at_the_right(axes, labels)
    return figure


def comparison_chart(
    accuracies: dict[str, dict[str, dict]], references: dict[str, dict[str, dict]], theme: Theme
) -> Figure:
    """Accuracies of several methods side by side, a panel for each score.

    Args:
        accuracies: ``values`` of the seeds and their ``mean``, by method and score.
        references: The same for what all methods are compared with, drawn as lines.
        theme: Colours.
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
        axes.set_title(describe_score(score))
        axes.set_xlabel('accuracy in %')
        axes.grid(axis='x')
    panels[0].set_yticks(range(len(accuracies)), list(accuracies))
    panels[0].invert_yaxis()
    if references:
        _legend_below(figure, panels[0])
    return figure


def seeds_chart(
    curves: dict[str, dict[str, Sequence[Curve]]], references: dict[str, dict[str, float]], theme: Theme
) -> Figure:
    """Accuracy over the iterations, a panel for each score and a thin line for each run.

    Args:
        curves: Iterations and accuracies of several runs, by score and kind of run.
        references: Accuracies that need no training, by score and name, drawn as lines.
        theme: Colours.
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
        _count_iterations(axes, 4)
    panels[0].set_ylabel('k-NN accuracy in %')
    _legend_below(figure, panels[0])
    return figure


def spread_chart(curves: dict[str, dict[str, Sequence[Curve]]], unit: str, theme: Theme, columns: int = 4) -> Figure:
    """Mean over the seeds with a band of one deviation, over the iterations; a panel for each score.

    Args:
        curves: Iterations, the same for all seeds, and values of every seed, by score and kind of run.
        unit: Of the values.
        theme: Colours.
        columns: Panels in a row.
    """
    columns = min(columns, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(0.4 + 3.1 * columns, 0.4 + 2.8 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for (score, kinds), axes in zip(curves.items(), panels, strict=False):
        for color, (kind, runs) in zip(theme.series, kinds.items(), strict=False):
            steps, values = runs[0][0], np.array([values for _, values in runs])
            mean, spread = values.mean(0), values.std(0, ddof=1) if len(runs) > 1 else 0
            axes.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.18, linewidth=0)
            axes.plot(steps, mean, color=color, marker='o', markersize=3, label=kind)
        axes.set_title(score)
        axes.set_ylabel(unit)
        _count_iterations(axes, 4)
    for axes in panels:
        axes.set_axis_off()
    _legend_below(figure, figure.axes[0])
    return figure


def time_chart(seconds: dict[str, float], theme: Theme) -> Figure:
    """Shares of the run's time as one bar.

    Args:
        seconds: Seconds by activity.
        theme: Colours.
    """
    figure = Figure(figsize=(CHART[0], 1.25))
    axes = figure.add_subplot()
    total = sum(seconds.values())
    left = 0.0
    for index, (name, value) in enumerate(seconds.items()):
        share = 100 * value / total
        axes.barh(0, share, left=left, color=theme.series[index], label=f'{name} {share:.0f} %', height=0.6)
        left += share
    axes.set(xlim=(0, 100), xlabel='share of the time in %', yticks=[])
    axes.grid(visible=False)
    axes.spines['left'].set_visible(False)
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=len(seconds), borderaxespad=0, handlelength=0.9)
    return figure


def _new_chart(title: str, unit: str, size: tuple[float, float] = CHART) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_ylabel(unit)
    _count_iterations(axes, 5)
    return figure, axes


def _count_iterations(axes: Axes, ticks: int) -> None:
    axes.set_xlabel('iteration')
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))


def _legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for panels that show the same kinds of lines."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=len(labels))


def _label_at_the_right(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write names beside the ends of lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    distance = 0.075 * (high - low)
    ordered = sorted(labels)
    for position, (_, text, color) in zip(
        spread_apart([level for level, *_ in ordered], distance), ordered, strict=True
    ):
        axes.annotate(
            text, (1.02, position), xycoords=('axes fraction', 'data'), va='center', fontsize=9, color=color,
            annotation_clip=False,
        )  # fmt: skip


def spread_apart(levels: Sequence[float], distance: float) -> list[float]:
    """Move rising numbers as little as possible so that neighbours keep a distance.

    Args:
        levels: Numbers in rising order.
        distance: Least distance of neighbours.

    Returns:
        Positions in the same order. Numbers that would touch are spread around their common mean.
    """
    groups = []
    for level in levels:
        groups.append([level])
        while len(groups) > 1 and _first(groups[-1], distance) - _last(groups[-2], distance) < distance:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_first(group, distance) + index * distance for group in groups for index in range(len(group))]


def _first(group: Sequence[float], distance: float) -> float:
    return sum(group) / len(group) - distance * (len(group) - 1) / 2


def _last(group: Sequence[float], distance: float) -> float:
    return _first(group, distance) + distance * (len(group) - 1)
