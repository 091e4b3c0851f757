"""Charts and images of the robustness protocol."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from mm_sop.datasets.transforms.corruptions import CORRUPTIONS
from mm_sop.report.charts import new_chart
from mm_sop.report.montage import Tile, montage, to_image, to_png
from mm_sop.report.page import Chart, Photo
from mm_sop.report.style import Theme

Accuracies = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Accuracies in [0, 1] by kind of disturbance, level and classifier."""

NAMES = dict(knn='k-NN', linear='linear')


def robustness_charts(accuracies: Accuracies) -> list[Chart]:
    """Draw all charts of a result."""

    def curve(kind: str, classifier: str = 'linear') -> dict[str, float]:
        return {level: each[classifier] for level, each in accuracies[kind].items()}

    occlusion, shuffle = (
        {name: curve(kind, classifier) for classifier, name in NAMES.items()} for kind in ('occlusion', 'shuffle')
    )
    guided = dict(salient_occlusion='linear, most attended', non_salient_occlusion='linear, least attended')
    occlusion |= {name: curve(kind) for kind, name in guided.items() if kind in accuracies}
    drops = dict(dropped_cells='excluded from the mean', zeroed_cells='set to zero', dropped_block='excluded block')
    inside = {name: curve(kind) for kind, name in drops.items()}
    noise, noise_unit = dict(linear=curve('map_noise')), 'standard deviation relative to the map'
    attacks = {}
    for kind in accuracies:
        if kind.startswith('attack_'):
            steps, size = kind.removeprefix('attack_').split('x')
            attacks[f'{steps} step{"s" * (steps != "1")} of {100 * float(size):g} %'] = curve(kind)
    clean = accuracies['clean']['0']
    levels: dict[str, tuple[str, str, Mapping, Mapping]] = dict(
        occlusion=('Occlusion', 'occluded fraction', occlusion, clean),
        shuffle=('Shuffled patches', 'rows and columns of patches', shuffle, clean),
        internal=('Dropped cells of the last map', 'fraction of the cells', inside, {}),
        noise=('Noise on the last map', noise_unit, noise, {}),
        attack=('Attacked pixels', 'largest change of a pixel', attacks, dict(linear=clean['linear'])),
    )
    text = 'Accuracy under the corruptions of ImageNet-C.'
    charts = [Chart.drawn('corruptions', partial(corruption_chart, accuracies), text)]
    for name, (title, unit, curves, undisturbed) in levels.items():
        draw = partial(level_chart, curves, undisturbed, title, unit)
        charts.append(Chart.drawn(name, draw, f'{title}: accuracy over {unit}.'))
    if 'background' in accuracies:
        draw = partial(background_chart, accuracies)
        charts.append(Chart.drawn('backgrounds', draw, 'Accuracy by kind of background.'))
    return charts


def level_chart(
    curves: Mapping[str, Mapping[str, float]], clean: Mapping[str, float], title: str, unit: str, theme: Theme
) -> Figure:
    """Accuracy over the level of a disturbance.

    ``curves`` has accuracies in [0, 1] by name and level. Those without disturbance, ``clean``, are horizontal lines.
    """
    figure, axes = new_chart((4.6, 3.3), title=title, xlabel=unit, ylabel='accuracy in %')
    for name, values in curves.items():
        axes.plot(list(values), 100 * np.array(list(values.values())), marker='o', markersize=4, label=name)
    for number, value in enumerate(clean.values()):
        color = theme.series[number] if len(clean) > 1 else theme.quiet
        label = None if number else 'undisturbed'
        axes.axhline(100 * value, color=color, linestyle=(0, (4, 2)), linewidth=1.3, label=label)
    axes.set_ylim(bottom=0)
    figure.legend(loc='outside lower center', ncols=3)
    return figure


def corruption_chart(accuracies: Accuracies, theme: Theme) -> Figure:
    """Accuracy for all severities of the evaluated corruptions, colored by family, with that of clean images."""
    figure = Figure(figsize=(7.6, 4.8))
    panels = figure.subplots(1, 2, sharey=True)
    families = list(dict.fromkeys(corruption.family for corruption in CORRUPTIONS.values()))
    evaluated = [kind for kind in CORRUPTIONS if kind in accuracies]
    for axes, (classifier, name) in zip(panels, NAMES.items(), strict=True):
        for row, kind in enumerate(evaluated):
            values = [100 * each[classifier] for each in accuracies[kind].values()]
            color = theme.series[families.index(CORRUPTIONS[kind].family)]
            axes.plot(values, [row] * len(values), color=color, linewidth=1, alpha=0.5)
            axes.scatter(values, [row] * len(values), s=12 + 9 * np.arange(len(values)), color=color, linewidths=0)
        clean = 100 * accuracies['clean']['0'][classifier]
        axes.axvline(clean, color=theme.quiet, linestyle=(0, (4, 2)), linewidth=1.3)
        axes.annotate(f'clean {clean:.1f}', (clean, -0.9), ha='right', va='bottom', fontsize=9, annotation_clip=False)
        axes.set_title(name, pad=14)
        axes.set(xlabel='accuracy in %', xlim=(0, None))
        axes.grid(axis='x')
    panels[0].set_yticks(range(len(evaluated)), [kind.replace('_', ' ') for kind in evaluated])
    panels[0].set_ylim(len(evaluated) - 0.5, -0.7)
    figure.supxlabel('small dots: severity 1, large dots: severity 5', fontsize=9)
    return figure


def background_chart(accuracies: Accuracies, theme: Theme) -> Figure:
    """Accuracy on the variants of ImageNet-9."""
    variants = accuracies['background']
    figure, axes = new_chart((4.6, 0.9 + 0.5 * len(variants)), title='Backgrounds', xlabel='accuracy in %')
    for number, (classifier, name) in enumerate(NAMES.items()):
        values = [100 * each[classifier] for each in variants.values()]
        positions = np.arange(len(values)) + 0.36 * (number - 0.5)
        axes.barh(positions, values, height=0.34, color=theme.series[number], label=name)
        for position, value in zip(positions, values, strict=True):
            axes.annotate(f' {value:.1f}', (value, position), va='center', fontsize=9)
    axes.set_yticks(range(len(variants)), [name.replace('_', ' ') for name in variants])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(visible=False)
    figure.legend(loc='outside lower center', ncols=2)
    return figure


def perturbation_gallery(rows: Sequence[Sequence[Mapping]]) -> Photo:
    """Show disturbed images, uint8, (3, H, W), BGR, with their captions."""
    tiles = [[Tile(to_image(torch.from_numpy(each['image']), True), each['caption']) for each in row] for row in rows]
    return Photo('disturbed', to_png(montage(tiles, side=176)), 'A test image disturbed in all ways.')
