"""Charts of evaluation results."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from mm_sop.visualization.style import Theme

# More classes than these are not named.
_MAX_NAMED = 40


def confusion_chart(matrix: np.ndarray, classes: Sequence[str], title: str, theme: Theme) -> Figure:
    """Shares of the pictures of each class by predicted class.

    Args:
        matrix: Number of pictures by true and predicted class, (C, C).
        classes: Names of the classes.
        title: What is classified.
        theme: Colours.
    """
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(2.2 + 0.32 * len(classes), 7)
    figure = Figure(figsize=(side + 0.9, side))
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap=_colors(theme), vmin=0, vmax=100)
    axes.set_title(title)
    axes.set(xlabel='predicted', ylabel='true')
    axes.grid(False)
    named = len(classes) <= _MAX_NAMED
    ticks = range(len(classes)) if named else []
    axes.set_xticks(ticks, classes if named else [], rotation=90)
    axes.set_yticks(ticks, classes if named else [])
    if len(classes) <= 12:
        _write_values(image, shares, theme)
    figure.colorbar(image, ax=axes, label='% of the true class', shrink=0.8).outline.set_visible(False)
    return figure


def grid_chart(
    accuracies: Mapping[str, Sequence[float]], columns: Sequence[str], chosen: tuple[str, int], theme: Theme
) -> Figure:
    """Validation accuracies of a grid of classifiers, the chosen one framed.

    Args:
        accuracies: Accuracies in [0, 1] by row.
        columns: Learning rates.
        chosen: Row and column of the chosen classifier.
        theme: Colours.
    """
    values = 100 * np.array(list(accuracies.values()))
    figure = Figure(figsize=(2.2 + 0.6 * max(len(columns), 4), 1.2 + 0.3 * max(len(accuracies), 3)))
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap=_colors(theme), aspect='auto')
    axes.set_title('Validation accuracy of all classifiers')
    axes.set_xticks(range(len(columns)), columns, fontsize=9)
    axes.set_yticks(range(len(accuracies)), list(accuracies))
    axes.set(xlabel='learning rate')
    axes.grid(False)
    _write_values(image, values, theme)
    corner = (chosen[1] - 0.5, list(accuracies).index(chosen[0]) - 0.5)
    axes.add_patch(_frame(corner, theme))
    figure.colorbar(image, ax=axes, label='accuracy in %').outline.set_visible(False)
    return figure


def scores_chart(groups: Mapping[str, Mapping[str, Mapping[str, tuple]]], xlabel: str, theme: Theme) -> Figure:
    """Accuracy with its error over something that is counted, a panel for each group and a line for each set.

    Args:
        groups: Accuracy and error (or None) in [0, 1] by group, line and place on the axis.
        xlabel: What is counted.
        theme: Colours.
    """
    figure = Figure(figsize=(0.6 + 3.2 * len(groups), 3))
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (title, lines) in zip(panels, groups.items(), strict=True):
        axes.set_title(title)
        for name, points in lines.items():
            places = [str(place) for place in points]
            values, errors = 100 * np.array([(value, error or 0) for value, error in points.values()]).T
            axes.errorbar(places, values, errors, marker='o', markersize=4, capsize=2, label=name)
        axes.set(xlabel=xlabel)
    panels[0].set_ylabel('accuracy in %')
    panels[0].legend()
    return figure


def _colors(theme: Theme) -> LinearSegmentedColormap:
    low = '#ffffff' if theme.name == 'light' else '#171c22'
    return LinearSegmentedColormap.from_list('share', [low, theme.series[0]])


def _write_values(image: AxesImage, values: np.ndarray, theme: Theme) -> None:
    for (row, column), value in np.ndenumerate(values):
        color = '#ffffff' if theme.name == 'light' and image.norm(value) > 0.6 else theme.ink
        image.axes.text(column, row, f'{value:.0f}', ha='center', va='center', fontsize=8, color=color)


def _frame(corner: tuple[float, float], theme: Theme) -> Rectangle:
    return Rectangle(corner, 1, 1, fill=False, edgecolor=theme.series[1], linewidth=2.5)
