"""Queries with the pictures that were found for them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from mm_sop.datasets.picture_files import PictureFiles
from mm_sop.visualization.montage import RIGHT, WRONG, Tile, montage, to_picture, to_png
from mm_sop.visualization.page import Photo
from mm_sop.visualization.style import Theme

# Pictures are shown as they are in the files, not as the network sees them.
_PIPELINE = (dict(type='LoadPicture'), dict(type='FitWithin', max_side=512), dict(type='PackInputs'))


@dataclass(frozen=True)
class Strip:
    """One query and its answer.

    Attributes:
        query: Index of the query.
        caption: Text below it.
        found: Index in the database, similarity, and whether it is right, of the most similar pictures.
    """

    query: int
    caption: str
    found: Sequence[tuple[int, float, bool]]


def retrieval_strips(
    name: str, strips: Sequence[Strip], queries: PictureFiles, database: PictureFiles, text: str
) -> Photo:
    """Draw strips; right pictures have a green frame, wrong ones an orange one.

    Args:
        name: Name of the file.
        strips: The strips.
        queries: Queries, shown cut to their boxes.
        database: Pictures that were searched.
        text: What is shown.
    """
    queries, database = (PictureFiles(part.paths, _PIPELINE, part.boxes) for part in (queries, database))
    rows = [
        [
            Tile(_picture(queries, strip.query), strip.caption),
            *(
                Tile(_picture(database, index), f'{similarity:.2f}', RIGHT if is_right else WRONG)
                for index, similarity, is_right in strip.found
            ),
        ]
        for strip in strips
    ]
    return Photo(name, to_png(montage(rows)), f'{text}. Green frames are right, orange ones wrong.')


def spread_over_quality(qualities: Sequence[float], count: int) -> list[int]:
    """Choose examples from the best to the worst, evenly spread over the ranks.

    Args:
        qualities: Quality of every example; those that are nan are never chosen.
        count: Number of examples.

    Returns:
        Indices, the best first.
    """
    qualities = np.asarray(qualities, dtype=float)
    order = [index for index in np.argsort(-qualities, kind='stable').tolist() if np.isfinite(qualities[index])]
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[place] for place in places]


def copies_chart(precisions: dict[str, float], theme: Theme) -> Figure:
    """Mean average precision over the strength of the edits, with that of the strong copies as a line.

    Args:
        precisions: By kind, such as ``'strong'``, ``'jpegqual/3'`` and ``'crops/10'``.
        theme: Colours.
    """
    series = {name: _read_series(precisions, name) for name in ('jpegqual', 'crops')}
    series = {name: points for name, points in series.items() if points}
    figure = Figure(figsize=(1 + 3.2 * max(len(series), 1), 3.0))
    panels = figure.subplots(1, max(len(series), 1), sharey=True, squeeze=False)[0]
    labels = dict(jpegqual='JPEG quality', crops='area cropped away in %')
    for axes, (name, points) in zip(panels, series.items(), strict=False):
        axes.plot(*zip(*points, strict=True), marker='o', markersize=4, label='copies of one kind')
        axes.set_xlabel(labels[name])
        if name == 'jpegqual':
            # The strongest edit stands at the right, as in the other panel.
            axes.invert_xaxis()
    for axes in panels:
        axes.axhline(100 * precisions['strong'], color=theme.series[1], linestyle=(0, (4, 2)), label='strong copies')
        axes.set_ylim(0, 103)
    panels[0].set_title('Copies whose original was found')
    panels[0].set_ylabel('mAP in %')
    panels[0].legend(loc='lower left')
    return figure


def _read_series(precisions: dict[str, float], name: str) -> list[tuple[int, float]]:
    points = [
        (int(kind.split('/')[1]), 100 * value) for kind, value in precisions.items() if kind.startswith(f'{name}/')
    ]
    return sorted(points)


def _picture(pictures: PictureFiles, index: int) -> np.ndarray:
    return to_picture(pictures[index]['inputs'], is_bgr=True)
