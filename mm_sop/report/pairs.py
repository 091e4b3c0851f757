"""Calibration report of semantic pairs."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mm_sop.evaluation.retrieval.mining import MinedPairs, format_report
from mm_sop.functional.neighbors import pair_cosines
from mm_sop.report.charts import CHART, new_chart
from mm_sop.report.galleries import Gallery
from mm_sop.report.montage import RIGHT, WRONG, Tile, montage, to_png
from mm_sop.report.style import LIGHT, Theme, render
from mm_sop.utils.files import write_atomically

ACCEPTED = ('high', 'middle', 'low')
"""Ranges of similarity inside the accepted band."""

_BINS = 120
_SIDE = 128


def write_pair_report(
    folder: str | Path,
    mined: MinedPairs,
    features: Tensor,
    image: Callable[[int], np.ndarray],
    title: str,
    seed: int = 0,
) -> None:
    """Write ``report.md``, ``report.json``, ``histogram.png`` and ``gallery.png`` on the result of mining.

    ``features``, (K, D), are those that were mined; ``image`` loads the RGB image of one of their rows. The seed
    chooses the pairs that are shown.
    """
    folder, upper = Path(folder), mined.report['upper']
    nearest = mined.neighbors.nearest
    cosines = {'random pairs': mined.random_cosines.numpy(), 'nearest pairs': nearest[nearest.isfinite()].numpy()}
    chart = partial(similarity_chart, cosines, mined.lower, upper)
    gallery = pair_gallery(image, group_pairs(mined, features), seed=seed)
    report = dict(mined.report, gallery=gallery.data['pairs'])
    write_atomically(folder / 'histogram.png', render(chart, LIGHT, transparent=False))
    # On white, so that it is legible on any background.
    sheet = Image.alpha_composite(Image.new('RGBA', gallery.image.size, 'white'), gallery.image.convert('RGBA'))
    write_atomically(folder / 'gallery.png', to_png(sheet))
    write_atomically(folder / 'report.json', json.dumps(report, indent=1))
    write_atomically(folder / 'report.md', format_report(mined.report, title))


def group_pairs(mined: MinedPairs, features: Tensor) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Group pairs, (n, 2), and their cosines, (n,), by range of similarity.

    The ranges are near duplicates above the band, the three thirds of the band, and an equally wide range below it.
    ``features`` has the shape (K, D).
    """
    rows = (mined.neighbors.nearest_rows >= 0).nonzero().squeeze(1)
    duplicates = torch.stack([rows, mined.neighbors.nearest_rows[rows]], dim=1)
    groups = dict(duplicate=(duplicates.numpy(), pair_cosines(features, duplicates).numpy()))
    upper, third = mined.report['upper'], (mined.report['upper'] - mined.lower) / 3
    # In fp32 and with the lower bound included, like the comparisons of mining.
    bounds = np.array([np.inf, upper - third, upper - 2 * third, mined.lower, mined.lower - 3 * third], np.float32)
    cosines = mined.candidate_cosines.numpy()
    for name, (high, low) in zip((*ACCEPTED, 'rejected'), pairwise(bounds), strict=True):
        inside = (cosines >= low) & (cosines < high)
        groups[name] = mined.candidates.numpy()[inside], cosines[inside]
    return groups


def similarity_chart(cosines: Mapping[str, np.ndarray], lower: float, upper: float, theme: Theme) -> Figure:
    """Plot the distributions of cosine similarities, (n,) by name, and the accepted band."""
    size, title = (1.5 * CHART[0], CHART[1]), 'Cosine similarity of images'
    figure, axes = new_chart(size, title=title, xlabel='cosine similarity', ylabel='pairs, %')
    low = min(float(np.quantile(values, 1e-4)) for values in cosines.values() if len(values))
    bins = np.linspace(min(low, lower), 1, _BINS + 1)
    axes.axvspan(lower, upper, color=theme.series[2], alpha=0.2, linewidth=0, label=f'band {lower:.3f} ... {upper:.3f}')
    for color, (name, values) in zip(theme.series, cosines.items(), strict=False):
        counts, edges = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
        axes.stairs(100 * counts / max(len(values), 1), edges, color=color, label=name, linewidth=1.6)
    axes.set(yscale='log', xlim=(bins[0], 1))
    axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1.1), ncols=len(cosines) + 1, handlelength=1.2)
    return figure


def pair_gallery(
    image: Callable[[int], np.ndarray],
    groups: Mapping[str, tuple[np.ndarray, np.ndarray]],
    num_pairs: int = 4,
    seed: int = 0,
) -> Gallery:
    """Draw random pairs, one row per range of similarity that is not empty, framed by whether they are accepted."""
    rows, shown = [], {}
    for name, (pairs, cosines) in groups.items():
        if not len(pairs):
            continue
        chosen = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:num_pairs])
        frame = RIGHT if name in ACCEPTED else WRONG
        tiles = []
        for number in chosen:
            first, second = (image(row) for row in pairs[number].tolist())
            gap = np.full((first.shape[0], max(1, first.shape[1] // 24), 3), 255, dtype=np.uint8)
            tiles.append(Tile(np.hstack([first, gap, second]), f'{name}, {cosines[number]:.4f}', frame))
        rows.append(tiles)
        shown[name] = [[*pairs[number].tolist(), round(float(cosines[number]), 5)] for number in chosen]
    sheet = montage(rows, side=2 * _SIDE) if rows else Image.new('RGBA', (1, 1))
    return Gallery(sheet, dict(pairs=shown))
