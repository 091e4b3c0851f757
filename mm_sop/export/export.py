"""Write an encoder for a library, and compare what the library makes of it with our features."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import torch
from PIL import Image
from torch import Tensor

from mm_sop.datasets.transforms.loading import UnreadableImageError, read_image
from mm_sop.datasets.unlabelled_images import list_images
from mm_sop.engine.atomic import make_folder_atomically, write_atomically
from mm_sop.evaluation.loading import SPECIFICATION, Encoder
from mm_sop.export.card import write_card
from mm_sop.export.target import TARGETS, Encode, ExportError, Target
from mm_sop.models.utils.readout import read_out

TOLERANCE = 1e-4
"""Largest absolute difference of features that an export may have."""


def export(
    encoder: Encoder,
    target: str,
    folder: str | Path,
    pictures: Sequence[Image.Image],
    run: str | Path | None = None,
    licence: str = 'apache-2.0',
) -> dict[str, float]:
    """Write an encoder for a library.

    The folder appears when it is complete and the library, loading it again, gives the same features.

    Args:
        encoder: The encoder.
        target: One of :data:`TARGETS`.
        folder: Where to write; must not exist.
        pictures: Pictures on which features are compared.
        run: Folder of the run, whose records give the figures of the model card. Defaults to None, no figures.
        licence: Licence of the weights, for the card.

    Returns:
        Largest absolute differences, of ``global`` where the library has such a thing, and ``local_map``.

    Raises:
        ExportError: The target is unknown, the library cannot express the network or fails, the folder exists, or
            features differ.
    """
    folder = Path(folder)
    check(encoder, target, folder)
    writer = TARGETS[target]
    with make_folder_atomically(folder) as temporary:
        differences = _write_and_compare(encoder, writer, temporary, pictures)
        write_card(encoder, writer, temporary, folder.name, differences, len(pictures), run, licence)
    return differences


def check(encoder: Encoder, target: str, folder: str | Path) -> None:
    """Refuse what :func:`export` cannot do, before anything is written.

    Args:
        encoder: The encoder.
        target: One of :data:`TARGETS`.
        folder: Where to write.

    Raises:
        ExportError: The target is unknown, the library cannot express the network, or the folder exists.
    """
    if target not in TARGETS:
        raise ExportError(f'no target {target!r}: expected one of {", ".join(TARGETS)}')
    TARGETS[target].check(encoder)
    if Path(folder).exists():
        raise ExportError(f'{folder} exists: delete it, or choose another --out')


def _write_and_compare(
    encoder: Encoder, target: Target, folder: Path, pictures: Sequence[Image.Image]
) -> dict[str, float]:
    try:
        target.write(encoder, folder)
        specification = replace(encoder.specification, weights=target.weights, format=target.format(encoder.network))
        write_atomically(folder / SPECIFICATION, specification.dumps())
        differences = compare(encoder, target.load(folder), pictures)
    except (ExportError, OSError):
        raise
    except Exception as error:  # libraries raise almost anything on networks that they do not know
        lines = (str(error).strip() or type(error).__name__).splitlines()
        # Traces of programs stand between their head and the reason.
        reason = ' ... '.join(dict.fromkeys((lines[0], lines[-1])))
        raise ExportError(f'{target.name} fails on {type(encoder.network).__name__}: {reason}') from error
    _check_differences(differences, target.name)
    return differences


@torch.no_grad()
def compare(encoder: Encoder, encode: Encode, pictures: Sequence[Image.Image]) -> dict[str, float]:
    """Largest absolute differences between our features and a library's.

    Args:
        encoder: Ours.
        encode: The library's.
        pictures: The pictures.
    """
    images = encoder.prepare(pictures)
    ours = read_out(encoder.network, images)
    features, local_map = encode(images)
    differences = {} if features is None else {'global': _difference(features, ours.global_features)}
    return differences | {'local_map': _difference(local_map, ours.local_map)}


def _difference(theirs: Tensor, ours: Tensor) -> float:
    if theirs.shape != ours.shape:
        raise ExportError(
            f'the features that were loaded back have the shape {tuple(theirs.shape)}, not {tuple(ours.shape)}'
        )
    return float((theirs - ours).abs().max())


def _check_differences(differences: dict[str, float], target: str) -> None:
    # A comparison with NaN is False.
    if not all(value <= TOLERANCE for value in differences.values()):
        raise ExportError(f'{target} gives other features: {json.dumps(differences)}, at most {TOLERANCE} is allowed')


def sample_pictures(folder: str | Path, count: int = 8) -> list[Image.Image]:
    """Pictures from a folder, evenly spaced in its sorted listing.

    Args:
        folder: The folder.
        count: At most so many.

    Raises:
        ExportError: The folder does not exist.
        ValueError: There is no picture in it, or none is asked for.
    """
    if count < 1:
        raise ValueError(f'{count} pictures: at least one is needed to compare features')
    if not Path(folder).is_dir():
        raise ExportError(
            f'no pictures to compare features on: {folder} does not exist. Give a folder with --data, or make the '
            'composites: tools/prepare_data.py composites --only classes'
        )
    paths = list_images(folder)
    chosen = paths[:: -(-len(paths) // count)]
    try:
        return [Image.fromarray(cv2.cvtColor(read_image(path), cv2.COLOR_BGR2RGB)) for path in chosen]
    except UnreadableImageError as error:
        raise ExportError(f'no picture to compare features on: {error}') from error
