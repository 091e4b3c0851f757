"""Charts and pictures of the locality protocol."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from mmengine.dataset import default_collate
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from mm_sop.evaluation.encoders import FrozenEncoder
from mm_sop.models.utils.readout import read_out
from mm_sop.visualization.attention import cls_attention, find_last_attention, global_likeness, overlay
from mm_sop.visualization.charts import CHART
from mm_sop.visualization.galleries import random_rows
from mm_sop.visualization.montage import Tile, montage, to_picture, to_png
from mm_sop.visualization.page import Photo
from mm_sop.visualization.style import Theme

NAMES = dict(redundancy='between places', local_global='places to the whole')

# Larger numbers of classes share colours.
_MAX_NAMED = 20


def cosines_chart(within: Mapping[str, np.ndarray], between: Mapping[str, float], theme: Theme) -> Figure:
    """Distribution of cosines over the pictures, and their mean between different pictures.

    Args:
        within: Cosine of every picture, (N,), by kind.
        between: Mean cosine between different pictures, by kind.
        theme: Colours.
    """
    figure = Figure(figsize=CHART)
    axes = figure.add_subplot()
    lowest = min(0, *between.values(), *(values.min() for values in within.values()))
    bins = np.linspace(lowest, 1, 41)
    for color, (kind, values) in zip(theme.series, within.items(), strict=False):
        axes.hist(
            values, bins, weights=np.full(len(values), 100 / len(values)), color=color, alpha=0.6, label=NAMES[kind]
        )
        axes.axvline(between[kind], color=color, linestyle=(0, (4, 2)), linewidth=1.5, label='other pictures')
    axes.set_title('Cosines of places')
    axes.set(xlabel='cosine', ylabel='pictures in %')
    figure.legend(loc='outside lower center', ncols=2)
    return figure


def effective_field_chart(
    field: np.ndarray, center: tuple[float, float], radii: Mapping[float, float], theme: Theme
) -> Figure:
    """Mean gradient with respect to the pixels, with the discs that hold shares of it.

    Args:
        field: Gradients, not negative, (H, W).
        center: Row and column of the cell's middle.
        radii: Radius in pixels by share.
        theme: Colours.
    """
    figure = Figure(figsize=(4.4, 3.6))
    axes = figure.add_subplot()
    scaled = field / field.max()
    image = axes.imshow(scaled.clip(1e-3), cmap='inferno', norm=LogNorm(1e-3, 1))
    for color, (share, radius) in zip(('#56b4e9', '#ffffff'), radii.items(), strict=False):
        label = f'{share:.0%}: {radius:.1f} px'
        axes.add_patch(Circle(center[::-1], radius, fill=False, edgecolor=color, linewidth=1.6, label=label))
    axes.set(title='Effective receptive field', xlim=(-0.5, field.shape[1] - 0.5), ylim=(field.shape[0] - 0.5, -0.5))
    axes.grid(visible=False)
    axes.legend(
        loc='lower left', labelcolor='#ffffff', facecolor='#000000', frameon=True, framealpha=0.55, edgecolor='none'
    )
    figure.colorbar(image, ax=axes, label='gradient, largest = 1').outline.set_visible(False)
    return figure


def embedding_chart(points: np.ndarray, labels: np.ndarray, classes: Sequence[str], theme: Theme) -> Figure:
    """Pictures as points of a plane, coloured by class.

    Args:
        points: (N, 2).
        labels: Classes, (N,).
        classes: Names of the classes; the first 20 are named.
        theme: Colours.
    """
    figure = Figure(figsize=(6.2, 4.2))
    axes = figure.add_subplot()
    palette = matplotlib.colormaps['tab10' if len(classes) <= 10 else 'tab20'].colors
    for label in np.unique(labels):
        chosen = points[labels == label]
        name = classes[label] if label < _MAX_NAMED else None
        axes.scatter(*chosen.T, s=11, color=palette[label % len(palette)], alpha=0.8, linewidths=0, label=name)
    axes.set_title('UMAP of the global representations')
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.legend(loc='outside right center', markerscale=1.8, handletextpad=0.2)
    return figure


def to_plane(features: Tensor, seed: int = 0) -> np.ndarray:
    """Reduce features to two dimensions by UMAP with cosine distances (McInnes et al., 2018).

    Args:
        features: (N, D), N > 3.
        seed: Seed of the optimisation.

    Returns:
        (N, 2).
    """
    # Its import takes seconds, which only this function should cost.
    from umap import UMAP

    plane = UMAP(n_neighbors=min(15, len(features) - 1), metric='cosine', init='pca', random_state=seed, n_jobs=1)
    return plane.fit_transform(features.float().numpy())


@torch.no_grad()
def local_gallery(encoder: FrozenEncoder, dataset: Dataset, num_pictures: int = 6, seed: int = 0) -> Photo:
    """Maps of random pictures: principal components, likeness to the whole, and attention where there is [CLS].

    Args:
        encoder: The network.
        dataset: Data set whose pipeline draws no random numbers.
        num_pictures: Number of rows.
        seed: Seed of the choice.
    """
    batch = default_collate([dataset[row] for row in random_rows(len(dataset), num_pictures, seed).tolist()])
    images = encoder.data_preprocessor(batch, False)['inputs']
    readout = read_out(encoder.network, images)
    components = principal_maps(readout.local_map.float())
    maps = {}
    if readout.global_features.shape[1] == readout.local_map.shape[1]:
        maps['likeness'] = global_likeness(readout.global_features, readout.local_map)[:, 0]
    if find_last_attention(encoder.network) is not None:
        heads = cls_attention(encoder.network, images)
        maps['attention'] = heads.mean(1)
        maps.update({f'head {number + 1}': heads[:, number] for number in range(heads.shape[1])})
    rows = []
    for index, image in enumerate(batch['inputs']):
        picture = to_picture(image, is_bgr=True)
        colors = Image.fromarray(components[index]).resize(picture.shape[1::-1], Image.Resampling.BICUBIC)
        tiles = [Tile(overlay(picture, each[index].float().cpu().numpy()), name) for name, each in maps.items()]
        rows.append([Tile(picture, 'picture'), Tile(np.asarray(colors), 'components'), *tiles])
    return Photo('maps', to_png(montage(rows, columns=9)), 'Maps of random test pictures.')


def principal_maps(local_map: Tensor) -> np.ndarray:
    """The first three principal components of all places as colours, as in DINOv2's figures.

    Args:
        local_map: (B, D, h, w). If there are fewer than three components, the others are zero.

    Returns:
        RGB, uint8, (B, h, w, 3); each component is stretched from its 1st to its 99th percentile.
    """
    count, _, height, width = local_map.shape
    cells = local_map.double().cpu().permute(0, 2, 3, 1).flatten(0, 2)
    centred = cells - cells.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    # The sign of a component means nothing; fixed, it does not change from machine to machine.
    directions = directions[:3] * directions[:3].gather(1, directions[:3].abs().argmax(1, keepdim=True)).sign()
    components = pad(centred @ directions.T, (0, 3 - len(directions))).numpy()
    low, high = np.percentile(components, (1, 99), axis=0)
    scaled = ((components - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return (255 * scaled).round().astype(np.uint8).reshape(count, height, width, 3)
