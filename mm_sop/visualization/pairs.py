"""The calibration report of semantic pairs."""

import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mm_sop.engine.atomic import write_atomically
from mm_sop.evaluation.mining import MinedPairs, format_report
from mm_sop.functional.semantic_pairs import pair_cosines
from mm_sop.visualization.charts import CHART
from mm_sop.visualization.galleries import Gallery
from mm_sop.visualization.montage import RIGHT, WRONG, Tile, montage, to_png
from mm_sop.visualization.style import LIGHT, Theme, render

ACCEPTED = ('high', 'middle', 'low')
"""Ranges of similarity inside of the band."""

_BINS = 120
_SIDE = 128


def write_pair_report(
    folder: str | Path,
    mined: MinedPairs,
    features: Tensor,
    picture: Callable[[int], np.ndarray],
    title: str,
    seed: int = 0,
) -> None:
    """Write ``report.md``, ``report.json``, ``histogram.png`` and ``gallery.png``.

    Args:
        folder: Where to write.
        mined: What was found.
        features: Features, (K, D).
        picture: Gives the RGB picture of a row of the features.
        title: What was mined.
        seed: Seed of the choice of pairs to show.
    """
    folder, upper = Path(folder), mined.report['upper']
    nearest = mined.neighbors.nearest
    cosines = {'random pairs': mined.random_cosines, 'nearest pairs': nearest[nearest.isfinite()]}
    cosines = {name: values.numpy() for name, values in cosines.items()}
    chart = partial(similarity_chart, cosines, mined.lower, upper)
    gallery = pair_gallery(picture, group_pairs(mined, features), seed=seed)
    report = dict(mined.report, gallery=gallery.data['pairs'])
    write_atomically(folder / 'histogram.png', render(chart, LIGHT, transparent=False))
    write_atomically(folder / 'gallery.png', _on_white(gallery.image))
    write_atomically(folder / 'report.json', json.dumps(report, indent=1))
    write_atomically(folder / 'report.md', format_report(mined.report, title))


def _on_white(image: Image.Image) -> bytes:
    """PNG that can be read on any background."""
    return to_png(Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA')))


def group_pairs(mined: MinedPairs, features: Tensor) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs, (n, 2), and cosines, (n,), by range of similarity.

    The ranges are near duplicates above the band, three equal parts of the band, and as much again below it.

    Args:
        mined: What was found.
        features: Features, (K, D).
    """
    rows = (mined.neighbors.nearest_rows >= 0).nonzero().squeeze(1)
    duplicates = torch.stack([rows, mined.neighbors.nearest_rows[rows]], dim=1)
    groups = dict(duplicate=(duplicates.numpy(), pair_cosines(features, duplicates).numpy()))
    upper, third = mined.report['upper'], (mined.report['upper'] - mined.lower) / 3
    # Mining compares fp32 with fp32 as well, and takes what equals a bound.
    bounds = np.float32([np.inf, upper - third, upper - 2 * third, mined.lower, mined.lower - 3 * third])
    cosines = mined.candidate_cosines.numpy()
    for name, (high, low) in zip((*ACCEPTED, 'rejected'), pairwise(bounds), strict=True):
        inside = (cosines >= low) & (cosines < high)
        groups[name] = mined.candidates.numpy()[inside], cosines[inside]
    return groups


def similarity_chart(cosines: dict[str, np.ndarray], lower: float, upper: float, theme: Theme) -> Figure:
    """Distribution of similarities, with the accepted band.

    Args:
        cosines: Cosines by name, (n,) each.
        lower: Lower bound of the band.
        upper: Upper bound.
        theme: Colours.
    """
    figure = Figure(figsize=(1.5 * CHART[0], CHART[1]))
    axes = figure.add_subplot()
    low = min(float(np.quantile(values, 1e-4)) for values in cosines.values() if len(values))
    bins = np.linspace(min(low, lower), 1, _BINS + 1)
    axes.axvspan(lower, upper, color=theme.series[2], alpha=0.2, linewidth=0, label=f'band {lower:.3f} ... {upper:.3f}')
    for color, (name, values) in zip(theme.series, cosines.items(), strict=False):
        counts, edges = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
        axes.stairs(100 * counts / max(len(values), 1), edges, color=color, label=name, linewidth=1.6)
    axes.set_yscale('log')
    axes.set_xlim(bins[0], 1)
    axes.set_title('Similarity of pictures')
    axes.set(xlabel='cosine', ylabel='share of pairs in %')
    axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1.1), ncols=len(cosines) + 1, handlelength=1.2)
    return figure


def pair_gallery(
    picture: Callable[[int], np.ndarray],
    groups: dict[str, tuple[np.ndarray, np.ndarray]],
    num_pairs: int = 4,
    seed: int = 0,
) -> Gallery:
    """Random pairs of several ranges of similarity, one row for each, framed by whether they are accepted.

    Args:
        picture: Gives the RGB picture of an index.
        groups: From :func:`group_pairs`; empty ranges are left out.
        num_pairs: Pairs in a row.
        seed: Seed of the choice.
    """
    rows, shown = [], {}
    for name, (pairs, cosines) in groups.items():
        if not len(pairs):
            continue
        chosen = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:num_pairs])
        frame = RIGHT if name in ACCEPTED else WRONG
        tiles = []
        for number in chosen:
            both = _beside(*(picture(row) for row in pairs[number].tolist()))
            tiles.append(Tile(both, f'{name}, {cosines[number]:.4f}', frame))
        rows.append(tiles)
        shown[name] = [[*pairs[number].tolist(), round(float(cosines[number]), 5)] for number in chosen]
    image = montage(rows, side=2 * _SIDE) if rows else Image.new('RGBA', (1, 1))
    return Gallery(image, dict(pairs=shown))


def _beside(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two pictures of one size with a white gap."""
    gap = np.full((first.shape[0], max(1, first.shape[1] // 24), 3), 255, dtype=np.uint8)
    return np.hstack([first, gap, second])
