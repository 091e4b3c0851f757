"""Label maps over their pictures."""

from collections.abc import Sequence

import numpy as np

from mm_sop.visualization.montage import Tile


def overlay_labels(
    picture: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]], opacity: float = 0.6
) -> np.ndarray:
    """Lay the colours of classes over a picture.

    Args:
        picture: RGB, uint8, (h, w, 3).
        labels: Classes, (h, w); pixels beyond the palette, such as those without a label, stay as they are.
        palette: RGB of every class, 0 ... 255.
        opacity: Share of the colour, 0 ... 1.
    """
    known = labels < len(palette)
    colors = np.asarray(palette, np.float64)[np.where(known, labels, 0)]
    mixed = (1 - opacity) * picture + opacity * colors
    return np.where(known[..., None], mixed, picture).round().astype(np.uint8)


def segmentation_row(
    picture: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> list[Tile]:
    """A picture, its true labels with the names of their classes, and the predicted ones with their accuracy.

    Args:
        picture: RGB, uint8, (h, w, 3).
        truth: True classes, (h, w); those beyond ``classes`` do not count.
        prediction: Predicted classes, (h, w).
        classes: Names.
        palette: RGB of every class, 0 ... 255.
    """
    labelled = truth < len(classes)
    labels, counts = np.unique(truth[labelled], return_counts=True)
    names = [classes[label] for label in labels[np.argsort(-counts)]]
    right = f'{100 * np.mean(prediction[labelled] == truth[labelled]):.0f} % right' if labelled.any() else 'no labels'
    return [
        Tile(picture, 'picture'),
        Tile(overlay_labels(picture, truth, palette), ', '.join(names)),
        Tile(overlay_labels(picture, prediction, palette), f'prediction, {right}'),
    ]
