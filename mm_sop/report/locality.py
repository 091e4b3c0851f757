"""Charts and images of the locality protocol."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image

from mm_sop.report.attention import overlay
from mm_sop.report.charts import CHART
from mm_sop.report.montage import Tile, montage, to_image, to_png
from mm_sop.report.page import Photo
from mm_sop.report.style import Theme

NAMES = dict(redundancy='between positions', local_global='positions to the whole image')

# Classes in the legend.
_MAX_NAMED = 20


def cosines_chart(within: Mapping[str, np.ndarray], between: Mapping[str, float], theme: Theme) -> Figure:
    """Distribution of cosine similarities over the images, and their mean between different images.

    Args:
        within: Cosine similarity of every image, (N,), by kind.
        between: Mean cosine similarity between different images, by kind.
        theme: Colors.
    """
    figure = Figure(figsize=CHART)
    axes = figure.add_subplot()
    lowest = min(0, *between.values(), *(values.min() for values in within.values()))
    bins = np.linspace(lowest, 1, 41).tolist()
    for color, (kind, values) in zip(theme.series, within.items(), strict=False):
        axes.hist(
            values, bins, weights=np.full(len(values), 100 / len(values)), color=color, alpha=0.6, label=NAMES[kind]
        )
        axes.axvline(between[kind], color=color, linestyle=(0, (4, 2)), linewidth=1.5, label='other images')
    axes.set_title('Similarity of positions')
    axes.set(xlabel='cosine similarity', ylabel='images in %')
    figure.legend(loc='outside lower center', ncols=2)
    return figure


def effective_field_chart(
    field: np.ndarray, center: Sequence[float], radii: Sequence[tuple[float, float]], theme: Theme
) -> Figure:
    """Mean gradient with respect to the pixels, with the discs that contain fractions of it.

    Args:
        field: Absolute gradients, (H, W).
        center: Row and column of the center.
        radii: Fractions, and radii of their discs in pixels.
        theme: Colors.
    """
    figure = Figure(figsize=(4.4, 3.6))
    axes = figure.add_subplot()
    scaled = field / field.max()
    image = axes.imshow(scaled.clip(1e-3), cmap='inferno', norm=LogNorm(1e-3, 1))
    for color, (fraction, radius) in zip(('#56b4e9', '#ffffff'), radii, strict=False):
        label = f'{fraction:.0%}: {radius:.1f} px'
        axes.add_patch(Circle((center[1], center[0]), radius, fill=False, edgecolor=color, linewidth=1.6, label=label))
    axes.set(title='Effective receptive field', xlim=(-0.5, field.shape[1] - 0.5), ylim=(field.shape[0] - 0.5, -0.5))
    axes.grid(visible=False)
    axes.legend(
        loc='lower left', labelcolor='#ffffff', facecolor='#000000', frameon=True, framealpha=0.55, edgecolor='none'
    )
    figure.colorbar(image, ax=axes, label='gradient, largest = 1').outline.set_visible(False)
    return figure


def embedding_chart(points: np.ndarray, labels: np.ndarray, classes: Sequence[str], theme: Theme) -> Figure:
    """Images as points of a plane, colored by class.

    Args:
        points: (N, 2).
        labels: Classes, (N,).
        classes: Names of the classes; the first 20 are in the legend.
        theme: Colors.
    """
    figure = Figure(figsize=(6.2, 4.2))
    axes = figure.add_subplot()
    palette = matplotlib.color_sequences['tab10' if len(classes) <= 10 else 'tab20']
    for label in np.unique(labels):
        selected = points[labels == label]
        name = classes[label] if label < _MAX_NAMED else None
        axes.scatter(
            selected[:, 0],
            selected[:, 1],
            s=11,
            color=palette[label % len(palette)],
            alpha=0.8,
            linewidths=0,
            label=name,
        )
    axes.set_title('UMAP of the global representations')
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.legend(loc='outside right center', markerscale=1.8, handletextpad=0.2)
    return figure


def map_gallery(images: np.ndarray, components: np.ndarray, maps: Mapping[str, np.ndarray]) -> Photo:
    """Show images with principal components and maps.

    Args:
        images: uint8, (B, 3, H, W), BGR.
        components: Principal components as colors, uint8, (B, h, w, 3).
        maps: Maps by name, (B, h, w).
    """
    rows = []
    for index, pixels in enumerate(images):
        image = to_image(torch.from_numpy(pixels), is_bgr=True)
        colors = Image.fromarray(components[index]).resize(image.shape[1::-1], Image.Resampling.BICUBIC)
        tiles = [Tile(overlay(image, each[index]), name) for name, each in maps.items()]
        rows.append([Tile(image, 'image'), Tile(np.asarray(colors), 'components'), *tiles])
    return Photo('maps', to_png(montage(rows, columns=9)), 'Maps of random test images.')
