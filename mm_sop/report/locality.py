"""Charts and images of the locality protocol."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image

from mm_sop.report.charts import new_chart
from mm_sop.report.montage import Tile, montage, to_image, to_png
from mm_sop.report.page import Photo
from mm_sop.report.predictions import overlay
from mm_sop.report.style import Theme

NAMES = dict(redundancy='between positions', local_global='positions to the whole image')

# Classes in the legend.
_MAX_NAMED = 20


def cosines_chart(within: Mapping[str, np.ndarray], between: Mapping[str, float], theme: Theme) -> Figure:
    """Distribution of cosine similarities over the images, (N,), and their mean between different images, by kind."""
    figure, axes = new_chart(title='Similarity of positions', xlabel='cosine similarity', ylabel='images in %')
    lowest = min(0, *between.values(), *(values.min() for values in within.values()))
    bins = np.linspace(lowest, 1, 41).tolist()
    for color, (kind, values) in zip(theme.series, within.items(), strict=False):
        weights = np.full(len(values), 100 / len(values))
        axes.hist(values, bins, weights=weights, color=color, alpha=0.6, label=NAMES[kind])
        axes.axvline(between[kind], color=color, linestyle=(0, (4, 2)), linewidth=1.5, label='other images')
    figure.legend(loc='outside lower center', ncols=2)
    return figure


def effective_field_chart(
    field: np.ndarray, center: Sequence[float], radii: Sequence[tuple[float, float]], theme: Theme
) -> Figure:
    """Mean gradient with respect to the pixels, (H, W), with the discs that contain fractions of it.

    ``center`` is row and column, ``radii`` has fractions and the radii of their discs in pixels.
    """
    figure, axes = new_chart((4.4, 3.6), title='Effective receptive field')
    image = axes.imshow((field / field.max()).clip(1e-3), cmap='inferno', norm=LogNorm(1e-3, 1))
    for color, (fraction, radius) in zip(('#56b4e9', '#ffffff'), radii, strict=False):
        label = f'{fraction:.0%}: {radius:.1f} px'
        axes.add_patch(Circle((center[1], center[0]), radius, fill=False, edgecolor=color, linewidth=1.6, label=label))
    axes.set(xlim=(-0.5, field.shape[1] - 0.5), ylim=(field.shape[0] - 0.5, -0.5))
    axes.grid(visible=False)
    frame = dict(frameon=True, framealpha=0.55, edgecolor='none')
    axes.legend(loc='lower left', labelcolor='#ffffff', facecolor='#000000', **frame)
    figure.colorbar(image, ax=axes, label='gradient, largest = 1').outline.set_visible(False)
    return figure


def embedding_chart(points: np.ndarray, labels: np.ndarray, classes: Sequence[str], theme: Theme) -> Figure:
    """Images as points of a plane, (N, 2), colored by class, (N,); the first 20 classes are in the legend."""
    figure, axes = new_chart((6.2, 4.2), title='UMAP of the global representations')
    palette = matplotlib.color_sequences['tab10' if len(classes) <= 10 else 'tab20']
    for label in np.unique(labels):
        name, color = classes[label] if label < _MAX_NAMED else None, palette[label % len(palette)]
        x, y = points[labels == label].T
        axes.scatter(x, y, s=11, color=color, alpha=0.8, linewidths=0, label=name)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.legend(loc='outside right center', markerscale=1.8, handletextpad=0.2)
    return figure


def map_gallery(images: np.ndarray, components: np.ndarray, maps: Mapping[str, np.ndarray]) -> Photo:
    """Show images with principal components and maps.

    ``images``, (B, 3, H, W), are uint8 and BGR, ``components``, (B, h, w, 3), uint8 colors, and ``maps`` by name have
    the shape (B, h, w).
    """
    rows = []
    for index, pixels in enumerate(images):
        image = to_image(torch.from_numpy(pixels), is_bgr=True)
        colors = Image.fromarray(components[index]).resize(image.shape[1::-1], Image.Resampling.BICUBIC)
        tiles = [Tile(overlay(image, each[index]), name) for name, each in maps.items()]
        rows.append([Tile(image, 'image'), Tile(np.asarray(colors), 'components'), *tiles])
    return Photo('maps', to_png(montage(rows, columns=9)), 'Maps of random test images.')
