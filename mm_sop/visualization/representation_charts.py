"""Charts of what features are like."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mm_sop.visualization.style import Theme


def spectrum_chart(spectra: Mapping[str, Sequence[float]], theme: Theme) -> Figure:
    """Singular values of features as shares of their sum, in falling order.

    Args:
        spectra: Singular values by name of the features.
        theme: Colours.
    """
    figure = Figure(figsize=(4.6, 3.2))
    axes = figure.add_subplot()
    for (name, values), color in zip(spectra.items(), theme.series, strict=False):
        shares = np.asarray(values) / np.sum(values)
        axes.plot(np.arange(1, len(shares) + 1), shares, color=color, label=name)
    axes.set(yscale='log', xlabel='dimension', ylabel='share of the singular values', xlim=(1, None))
    # What numerical noise leaves of absent dimensions is not worth the space.
    axes.set_ylim(bottom=max(1e-6, axes.get_ylim()[0]))
    axes.set_title('Spectrum of the features')
    axes.legend()
    return figure


def taps_chart(panels: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]], theme: Theme) -> Figure:
    """Scores of the features after each layer of a projector, a panel for each score.

    Args:
        panels: Mean and deviation by score, line and layer; the layers are the same everywhere.
        theme: Colours.
    """
    figure = Figure(figsize=(0.6 + 2.7 * len(panels), 3.2))
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
        for (name, layers), color in zip(lines.items(), theme.series, strict=False):
            values, errors = np.array(list(layers.values())).T
            axes.errorbar(
                range(len(layers)), values, errors, marker='o', markersize=4, capsize=2, color=color, label=name
            )
        axes.set_xticks(range(len(layers)), list(layers), rotation=30, ha='right')
        axes.set_title(title)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=min(4, len(labels)))
    return figure


def transfer_chart(accuracies: Mapping[str, Mapping[str, tuple[float, float]]], theme: Theme) -> Figure:
    """Accuracies on many sets, one row for each.

    Args:
        accuracies: Accuracy and standard error in [0, 1] by classifier and test set; the sets are the same everywhere.
        theme: Colours.
    """
    sets = list(next(iter(accuracies.values())))
    figure = Figure(figsize=(5.2, 1.2 + 0.36 * len(sets)))
    axes = figure.add_subplot()
    for number, ((name, by_set), color) in enumerate(zip(accuracies.items(), theme.series, strict=False)):
        values, errors = 100 * np.array(list(by_set.values())).T
        rows = np.arange(len(sets)) + 0.2 * number
        axes.errorbar(values, rows, xerr=errors, fmt='o', markersize=4, capsize=2, color=color, label=name)
    axes.set_yticks(np.arange(len(sets)) + 0.1 * (len(accuracies) - 1), sets)
    axes.invert_yaxis()
    axes.set(xlabel='accuracy in %')
    axes.grid(axis='x')
    axes.set_title('Transfer')
    figure.legend(loc='outside lower center', ncols=len(accuracies))
    return figure
