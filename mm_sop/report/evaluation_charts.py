"""Charts of evaluation results."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from mm_sop.report.charts import legend_below, new_chart
from mm_sop.report.style import Theme

# Classes have tick labels up to this number.
_MAX_NAMED = 40


def confusion_chart(matrix: np.ndarray, classes: Sequence[str], title: str, theme: Theme) -> Figure:
    """Fractions of the images of each class by predicted class.

    ``matrix``, (C, C), has the number of images by true and predicted class.
    """
    percent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(2.2 + 0.32 * len(classes), 7)
    figure, axes = new_chart((side + 0.9, side), title=title, xlabel='predicted', ylabel='true')
    image = axes.imshow(percent, cmap=_colors(theme), vmin=0, vmax=100)
    axes.grid(False)
    named = classes if len(classes) <= _MAX_NAMED else []
    axes.set_xticks(range(len(named)), named, rotation=90)
    axes.set_yticks(range(len(named)), named)
    if len(classes) <= 12:
        _write_values(image, percent, theme)
    figure.colorbar(image, ax=axes, label='% of the true class', shrink=0.8).outline.set_visible(False)
    return figure


def grid_chart(
    accuracies: Mapping[str, Sequence[float]], columns: Sequence[str], selected: tuple[str, int], theme: Theme
) -> Figure:
    """Validation accuracies of a grid of classifiers; the selected one is framed.

    ``accuracies`` in [0, 1] by row, the learning rates of the ``columns``, and row and column of the selected one.
    """
    values = 100 * np.array(list(accuracies.values()))
    size = 2.2 + 0.6 * max(len(columns), 4), 1.2 + 0.3 * max(len(accuracies), 3)
    figure, axes = new_chart(size, title='Validation accuracy of all classifiers', xlabel='learning rate')
    image = axes.imshow(values, cmap=_colors(theme), aspect='auto')
    axes.set_xticks(range(len(columns)), columns, fontsize=9)
    axes.set_yticks(range(len(accuracies)), list(accuracies))
    axes.grid(False)
    _write_values(image, values, theme)
    corner = (selected[1] - 0.5, list(accuracies).index(selected[0]) - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=theme.series[1], linewidth=2.5))
    figure.colorbar(image, ax=axes, label='accuracy in %').outline.set_visible(False)
    return figure


def scores_chart(groups: Mapping[str, Mapping[str, Mapping[str, tuple]]], xlabel: str, theme: Theme) -> Figure:
    """Accuracy with its error over a quantity, a panel for each group and a line for each dataset.

    ``groups`` has accuracy and error (or None) in [0, 1] by group, line and position on the axis.
    """
    figure = Figure(figsize=(0.6 + 3.2 * len(groups), 3))
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (title, lines) in zip(panels, groups.items(), strict=True):
        axes.set(title=title, xlabel=xlabel)
        for name, points in lines.items():
            positions = [str(position) for position in points]
            values, errors = 100 * np.array([(value, error or 0) for value, error in points.values()]).T
            axes.errorbar(positions, values, errors, marker='o', markersize=4, capsize=2, label=name)
    panels[0].set_ylabel('accuracy in %')
    panels[0].legend()
    return figure


def spectrum_chart(spectra: Mapping[str, Sequence[float]], theme: Theme) -> Figure:
    """Singular values of features as fractions of their sum, in falling order, by name of the features."""
    figure, axes = new_chart((4.6, 3.2), title='Spectrum of the features', xlabel='dimension')
    for (name, values), color in zip(spectra.items(), theme.series, strict=False):
        fractions = np.asarray(values) / np.sum(values)
        axes.plot(np.arange(1, len(fractions) + 1), fractions, color=color, label=name)
    axes.set(yscale='log', ylabel='fraction of the singular values', xlim=(1, None))
    # Do not show the numerical noise of missing dimensions.
    axes.set_ylim(bottom=max(1e-6, axes.get_ylim()[0]))
    axes.legend()
    return figure


def taps_chart(panels: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]], theme: Theme) -> Figure:
    """Scores of the features after each layer of a projector, a panel for each score.

    ``panels`` has mean and standard deviation by score, line and layer; all lines have the same layers.
    """
    figure = Figure(figsize=(0.6 + 2.7 * len(panels), 3.2))
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
        for (name, layers), color in zip(lines.items(), theme.series, strict=False):
            ticks, (values, errors) = range(len(layers)), np.array(list(layers.values())).T
            axes.errorbar(ticks, values, errors, marker='o', markersize=4, capsize=2, color=color, label=name)
        axes.set_xticks(ticks, list(layers), rotation=30, ha='right')
        axes.set_title(title)
    legend_below(figure, all_axes[0], columns=4)
    return figure


def transfer_chart(accuracies: Mapping[str, Mapping[str, tuple[float, float]]], theme: Theme) -> Figure:
    """Accuracies on several datasets, a row for each.

    ``accuracies`` has accuracy and standard error in [0, 1] by classifier and test set, the same sets for all.
    """
    sets = list(next(iter(accuracies.values())))
    figure, axes = new_chart((5.2, 1.2 + 0.36 * len(sets)), title='Transfer', xlabel='accuracy in %')
    for number, ((name, by_set), color) in enumerate(zip(accuracies.items(), theme.series, strict=False)):
        values, errors = 100 * np.array(list(by_set.values())).T
        rows = np.arange(len(sets)) + 0.2 * number
        axes.errorbar(values, rows, xerr=errors, fmt='o', markersize=4, capsize=2, color=color, label=name)
    axes.set_yticks(np.arange(len(sets)) + 0.1 * (len(accuracies) - 1), sets)
    axes.invert_yaxis()
    axes.grid(axis='x')
    figure.legend(loc='outside lower center', ncols=len(accuracies))
    return figure


def copies_chart(precisions: dict[str, float], theme: Theme) -> Figure:
    """Mean average precision over the strength of the edits, with that of the strong copies as a line.

    ``precisions`` by kind, such as ``'strong'``, ``'jpegqual/3'`` and ``'crops/10'``.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for kind, value in precisions.items():
        name, _, level = kind.partition('/')
        if name in ('jpegqual', 'crops'):
            series.setdefault(name, []).append((int(level), 100 * value))
    figure = Figure(figsize=(1 + 3.2 * max(len(series), 1), 3.0))
    panels = figure.subplots(1, max(len(series), 1), sharey=True, squeeze=False)[0]
    labels = dict(jpegqual='JPEG quality', crops='area cropped away in %')
    for axes, name in zip(panels, [name for name in labels if name in series], strict=False):
        axes.plot(*zip(*sorted(series[name]), strict=True), marker='o', markersize=4, label='copies of one kind')
        axes.set_xlabel(labels[name])
        if name == 'jpegqual':
            # The strongest edit is at the right, as in the other panel.
            axes.invert_xaxis()
    for axes in panels:
        axes.axhline(100 * precisions['strong'], color=theme.series[1], linestyle=(0, (4, 2)), label='strong copies')
        axes.set_ylim(0, 103)
    panels[0].set(title='Copies whose original was found', ylabel='mAP in %')
    panels[0].legend(loc='lower left')
    return figure


def _colors(theme: Theme) -> LinearSegmentedColormap:
    low = '#ffffff' if theme.name == 'light' else '#171c22'
    return LinearSegmentedColormap.from_list('fraction', [low, theme.series[0]])


def _write_values(image: AxesImage, values: np.ndarray, theme: Theme) -> None:
    is_dark = np.asarray(image.norm(values)) > 0.6
    for (row, column), value in np.ndenumerate(values):
        color = '#ffffff' if theme.name == 'light' and is_dark[row, column] else theme.ink
        image.axes.text(column, row, f'{value:.0f}', ha='center', va='center', fontsize=8, color=color)
