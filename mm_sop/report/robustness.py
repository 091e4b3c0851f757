"""Charts and images of the robustness protocol."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from matplotlib.figure import Figure

from mm_sop.datasets.transforms.corruptions import CORRUPTIONS
from mm_sop.report.montage import Tile, montage, to_image, to_png
from mm_sop.report.page import Chart, Photo
from mm_sop.report.style import Theme

Accuracies = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Accuracies in [0, 1] by kind of disturbance, level and classifier."""

NAMES = dict(knn='k-NN', linear='linear')


def robustness_charts(accuracies: Accuracies) -> list[Chart]:
    """Draw all charts of a result.

    Args:
        accuracies: Accuracies of every kind.
    """
    by_classifier = {
        kind: {name: _curve(accuracies[kind], classifier) for classifier, name in NAMES.items()}
        for kind in ('occlusion', 'shuffle')
    }
    guided = dict(salient_occlusion='linear, most attended', non_salient_occlusion='linear, least attended')
    by_classifier['occlusion'].update({name: _curve(accuracies[k]) for k, name in guided.items() if k in accuracies})
    drops = dict(dropped_cells='excluded from the mean', zeroed_cells='set to zero', dropped_block='excluded block')
    inside = {name: _curve(accuracies[kind]) for kind, name in drops.items()}
    attacks = {_describe_attack(kind): _curve(accuracies[kind]) for kind in accuracies if kind.startswith('attack_')}
    clean = accuracies['clean']['0']
    charts: dict[str, tuple[Callable[[Theme], Figure], str]] = dict(
        corruptions=(partial(corruption_chart, accuracies), 'Accuracy under the corruptions of ImageNet-C.'),
        occlusion=_curves('Occlusion', 'occluded fraction', by_classifier['occlusion'], clean),
        shuffle=_curves('Shuffled patches', 'rows and columns of patches', by_classifier['shuffle'], clean),
        internal=_curves('Dropped cells of the last map', 'fraction of the cells', inside),
        noise=_curves(
            'Noise on the last map',
            'standard deviation relative to the map',
            dict(linear=_curve(accuracies['map_noise'])),
        ),
        attack=_curves('Attacked pixels', 'largest change of a pixel', attacks, dict(linear=clean['linear'])),
    )
    if 'background' in accuracies:
        charts['backgrounds'] = partial(background_chart, accuracies), 'Accuracy by kind of background.'
    return [Chart.drawn(name, draw, text) for name, (draw, text) in charts.items()]


def level_chart(
    curves: Mapping[str, Mapping[str, float]], clean: Mapping[str, float], title: str, unit: str, theme: Theme
) -> Figure:
    """Accuracy over the level of a disturbance.

    Args:
        curves: Accuracies in [0, 1] by name and level.
        clean: Accuracies without disturbance by classifier, drawn as horizontal lines.
        title: The disturbance.
        unit: Label of the levels.
        theme: Colors.
    """
    figure = Figure(figsize=(4.6, 3.3))
    axes = figure.add_subplot()
    for name, values in curves.items():
        axes.plot(list(values), 100 * np.array(list(values.values())), marker='o', markersize=4, label=name)
    for number, value in enumerate(clean.values()):
        color = theme.series[number] if len(clean) > 1 else theme.quiet
        label = None if number else 'undisturbed'
        axes.axhline(100 * value, color=color, linestyle=(0, (4, 2)), linewidth=1.3, label=label)
    axes.set_title(title)
    axes.set(xlabel=unit, ylabel='accuracy in %', ylim=(0, None))
    figure.legend(loc='outside lower center', ncols=3)
    return figure


def corruption_chart(accuracies: Accuracies, theme: Theme) -> Figure:
    """Accuracy for all severities of the evaluated corruptions, colored by family, with that of clean images.

    Args:
        accuracies: Accuracies of every kind.
        theme: Colors.
    """
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
    """Accuracy on the variants of ImageNet-9.

    Args:
        accuracies: Accuracies of every kind.
        theme: Colors.
    """
    variants = accuracies['background']
    figure = Figure(figsize=(4.6, 0.9 + 0.5 * len(variants)))
    axes = figure.add_subplot()
    for number, (classifier, name) in enumerate(NAMES.items()):
        values = [100 * each[classifier] for each in variants.values()]
        positions = np.arange(len(values)) + 0.36 * (number - 0.5)
        axes.barh(positions, values, height=0.34, color=theme.series[number], label=name)
        for position, value in zip(positions, values, strict=True):
            axes.annotate(f' {value:.1f}', (value, position), va='center', fontsize=9)
    axes.set_yticks(range(len(variants)), [name.replace('_', ' ') for name in variants])
    axes.invert_yaxis()
    axes.set_title('Backgrounds')
    axes.set(xlabel='accuracy in %')
    axes.margins(x=0.12)
    axes.grid(visible=False)
    figure.legend(loc='outside lower center', ncols=2)
    return figure


def perturbation_gallery(rows: Sequence[Sequence[Mapping]]) -> Photo:
    """Show disturbed images.

    Args:
        rows: ``caption`` and ``image``, uint8, (3, H, W), BGR, of every image.
    """
    tiles = [[Tile(to_image(torch.from_numpy(each['image']), True), each['caption']) for each in row] for row in rows]
    return Photo('disturbed', to_png(montage(tiles, side=176)), 'A test image disturbed in all ways.')


def _curves(title: str, unit: str, curves: Mapping, clean: Mapping = MappingProxyType({})) -> tuple[Callable, str]:
    return partial(level_chart, curves, clean, title, unit), f'{title}: accuracy over {unit}.'


def _curve(levels: Mapping[str, Mapping[str, float]], classifier: str = 'linear') -> dict[str, float]:
    return {level: each[classifier] for level, each in levels.items()}


def _describe_attack(kind: str) -> str:
    steps, size = kind.removeprefix('attack_').split('x')
    return f'{steps} step{"s" * (steps != "1")} of {100 * float(size):g} %'
