"""Charts and pictures of the robustness protocol."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
from matplotlib.figure import Figure
from torch.utils.data import Dataset

from mm_sop.datasets.transforms.corruptions import CORRUPTIONS
from mm_sop.evaluation.perturbed_data import BACKGROUNDS, perturb_dataset
from mm_sop.visualization.galleries import random_rows
from mm_sop.visualization.montage import Tile, montage, to_picture, to_png
from mm_sop.visualization.page import Chart, Photo
from mm_sop.visualization.style import Theme

Accuracies = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Accuracies in [0, 1] by kind of disturbance, level and classifier."""

NAMES = dict(knn='k-NN', linear='linear')

_SHOWN_SEVERITY = 3


def robustness_charts(accuracies: Accuracies) -> list[Chart]:
    """All charts of a result.

    Args:
        accuracies: Accuracies of every kind.
    """
    by_classifier = {
        kind: {name: _curve(accuracies[kind], classifier) for classifier, name in NAMES.items()}
        for kind in ('occlusion', 'shuffle')
    }
    chosen = dict(salient_occlusion='linear, most attended', non_salient_occlusion='linear, least attended')
    by_classifier['occlusion'].update({name: _curve(accuracies[k]) for k, name in chosen.items() if k in accuracies})
    drops = dict(dropped_cells='mean of the others', zeroed_cells='set to zero', dropped_block='without a block')
    inside = {name: _curve(accuracies[kind]) for kind, name in drops.items()}
    attacks = {_describe_attack(kind): _curve(accuracies[kind]) for kind in accuracies if kind.startswith('attack_')}
    clean = accuracies['clean']['0']
    charts = dict(
        corruptions=(partial(corruption_chart, accuracies), 'Accuracy under the corruptions of ImageNet-C.'),
        occlusion=_curves('Occlusion', 'occluded share', by_classifier['occlusion'], clean),
        shuffle=_curves('Shuffled patches', 'rows and columns of patches', by_classifier['shuffle'], clean),
        internal=_curves('Cells of the last map taken away', 'share of the cells', inside),
        noise=_curves('Noise on the last map', 'deviations of the map', dict(linear=_curve(accuracies['map_noise']))),
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
        clean: Accuracies without disturbance by classifier, drawn as lines.
        title: The disturbance.
        unit: What the levels are.
        theme: Colours.
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
    """Accuracy of the severities of all corruptions that were tried, by family, beside that of clean pictures.

    Args:
        accuracies: Accuracies of every kind.
        theme: Colours.
    """
    figure = Figure(figsize=(7.6, 4.8))
    panels = figure.subplots(1, 2, sharey=True)
    families = list(dict.fromkeys(corruption.family for corruption in CORRUPTIONS.values()))
    tried = [kind for kind in CORRUPTIONS if kind in accuracies]
    for axes, (classifier, name) in zip(panels, NAMES.items(), strict=True):
        for row, kind in enumerate(tried):
            values = [100 * found[classifier] for found in accuracies[kind].values()]
            color = theme.series[families.index(CORRUPTIONS[kind].family)]
            axes.plot(values, [row] * len(values), color=color, linewidth=1, alpha=0.5)
            axes.scatter(values, [row] * len(values), s=12 + 9 * np.arange(len(values)), color=color, linewidths=0)
        clean = 100 * accuracies['clean']['0'][classifier]
        axes.axvline(clean, color=theme.quiet, linestyle=(0, (4, 2)), linewidth=1.3)
        axes.annotate(f'clean {clean:.1f}', (clean, -0.9), ha='right', va='bottom', fontsize=9, annotation_clip=False)
        axes.set_title(name, pad=14)
        axes.set(xlabel='accuracy in %', xlim=(0, None))
        axes.grid(axis='x')
    panels[0].set_yticks(range(len(tried)), [kind.replace('_', ' ') for kind in tried])
    panels[0].set_ylim(len(tried) - 0.5, -0.7)
    figure.supxlabel('small dots: severity 1, large dots: severity 5', fontsize=9)
    return figure


def background_chart(accuracies: Accuracies, theme: Theme) -> Figure:
    """Accuracy on the variants of ImageNet-9.

    Args:
        accuracies: Accuracies of every kind.
        theme: Colours.
    """
    variants = accuracies['background']
    figure = Figure(figsize=(4.6, 0.9 + 0.5 * len(variants)))
    axes = figure.add_subplot()
    for number, (classifier, name) in enumerate(NAMES.items()):
        values = [100 * found[classifier] for found in variants.values()]
        places = np.arange(len(values)) + 0.36 * (number - 0.5)
        axes.barh(places, values, height=0.34, color=theme.series[number], label=name)
        for place, value in zip(places, values, strict=True):
            axes.annotate(f' {value:.1f}', (value, place), va='center', fontsize=9)
    axes.set_yticks(range(len(variants)), [name.replace('_', ' ') for name in variants])
    axes.invert_yaxis()
    axes.set_title('Backgrounds')
    axes.set(xlabel='accuracy in %')
    axes.margins(x=0.12)
    axes.grid(visible=False)
    figure.legend(loc='outside lower center', ncols=2)
    return figure


def perturbation_gallery(
    data: Mapping[str, Dataset], occluded: Sequence[float], shuffled: Sequence[int], seed: int = 0
) -> Photo:
    """A test picture in all corruptions at medium severity, occluded, shuffled, and another on all backgrounds.

    Args:
        data: Data sets of the protocol.
        occluded: Shares of occluded patches to show.
        shuffled: Rows and columns of shuffled patches to show.
        seed: Seed of the choice and of what is drawn.
    """
    row = int(random_rows(len(data['test']), 1, seed)[0])
    shown = [Tile(_picture(data['test'], row), 'clean')]
    levels = {**dict.fromkeys(CORRUPTIONS, (_SHOWN_SEVERITY,)), 'occlusion': occluded, 'shuffle': shuffled}
    for kind, chosen in levels.items():
        for level in chosen:
            # The stored set need not hold this picture.
            picture = _picture(perturb_dataset(data['test'], kind, [level], seed), row)
            shown.append(Tile(picture, kind.replace('_', ' ')))
    rows = [shown[start : start + 6] for start in range(0, len(shown), 6)]
    variants = [name for name in BACKGROUNDS if name in data]
    if variants:
        other = int(random_rows(min(len(data[name]) for name in variants), 1, seed)[0])
        rows.append([Tile(_picture(data[name], other), name.replace('_', ' ')) for name in variants])
    return Photo('disturbed', to_png(montage(rows, side=176)), 'A test picture disturbed in all ways.')


def _picture(dataset: Dataset, row: int) -> np.ndarray:
    return to_picture(dataset[row]['inputs'], is_bgr=True)


def _curves(title: str, unit: str, curves: Mapping, clean: Mapping = MappingProxyType({})) -> tuple[Callable, str]:
    return partial(level_chart, curves, clean, title, unit), f'{title}: accuracy over {unit}.'


def _curve(levels: Mapping[str, Mapping[str, float]], classifier: str = 'linear') -> dict[str, float]:
    return {level: found[classifier] for level, found in levels.items()}


def _describe_attack(kind: str) -> str:
    steps, size = kind.removeprefix('attack_').split('x')
    return f'{steps} step{"s" * (steps != "1")} of {100 * float(size):g} %'
