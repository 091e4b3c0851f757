"""Writes an encoder for a library and checks that the library computes the same features."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import torch
from PIL import Image
from torch import Tensor

from mm_sop.datasets.image_files import list_images
from mm_sop.datasets.transforms.loading import UnreadableImageError, read_image
from mm_sop.encoders.encoder import SPECIFICATION, Encoder
from mm_sop.export.card import write_card
from mm_sop.export.target import TARGETS, Encode, ExportError
from mm_sop.models.utils.readout import read_out
from mm_sop.utils.files import make_folder_atomically, write_atomically

TOLERANCE = 1e-4
"""Largest absolute difference of features that an export may have."""


def export(
    encoder: Encoder,
    target: str,
    folder: str | Path,
    images: Sequence[Image.Image],
    run: str | Path | None = None,
    license: str = 'apache-2.0',
) -> dict[str, float]:
    """Write an encoder for a library into a new folder, with a model card.

    The folder appears only after the library has loaded the files back and computed the same features.

    Args:
        encoder: The encoder.
        target: One of :data:`TARGETS`.
        folder: Where to write; must not exist.
        images: Images on which features are compared.
        run: Folder of the run, whose results go into the model card. None for a card without results.
        license: License of the weights, for the card.

    Returns:
        Largest absolute differences of ``local_map`` and, where the library has a global representation, ``global``.

    Raises:
        ExportError: The target is unknown, the library cannot express the network or fails, the folder exists, or
            features differ.
    """
    folder = Path(folder)
    check(encoder, target, folder)
    writer, network = TARGETS[target], encoder.network
    with make_folder_atomically(folder) as temporary:
        try:
            writer.write(encoder, temporary)
            specification = replace(encoder.specification, weights=writer.weights, format=writer.format(network))
            write_atomically(temporary / SPECIFICATION, specification.dumps())
            differences = compare(encoder, writer.load(temporary), images)
        except (ExportError, OSError):
            raise
        except Exception as error:  # libraries raise almost anything for unknown networks
            lines = (str(error).strip() or type(error).__name__).splitlines()
            # Between the first and the last line stand traces of the exported program.
            reason = ' ... '.join(dict.fromkeys((lines[0], lines[-1])))
            raise ExportError(f'{target} fails on {type(network).__name__}: {reason}') from error
        # NaN fails this comparison.
        if not all(value <= TOLERANCE for value in differences.values()):
            found = json.dumps(differences)
            raise ExportError(f'{target} computes other features: {found}, at most {TOLERANCE} is allowed')
        write_card(encoder, writer, temporary, folder.name, differences, len(images), run, license)
    return differences


def check(encoder: Encoder, target: str, folder: str | Path) -> None:
    """Raise if :func:`export` cannot write this target, before anything is written.

    Raises:
        ExportError: The target is unknown, the library cannot express the network, or the folder exists.
    """
    if target not in TARGETS:
        raise ExportError(f'no target {target!r}: expected one of {", ".join(TARGETS)}')
    TARGETS[target].check(encoder)
    if Path(folder).exists():
        raise ExportError(f'{folder} exists: delete it, or choose another --out')


@torch.no_grad()
def compare(encoder: Encoder, encode: Encode, images: Sequence[Image.Image]) -> dict[str, float]:
    """Compute the largest absolute differences between our features and a library's on images of any size."""
    batch = encoder.prepare(images)
    ours = read_out(encoder.network, batch)
    features, local_map = encode(batch)
    differences = {} if features is None else {'global': _difference(features, ours.global_features)}
    return differences | {'local_map': _difference(local_map, ours.local_map)}


def _difference(theirs: Tensor, ours: Tensor) -> float:
    if theirs.shape != ours.shape:
        raise ExportError(f'the features of the library have the shape {tuple(theirs.shape)}, not {tuple(ours.shape)}')
    return float((theirs - ours).abs().max())


def sample_images(folder: str | Path, count: int = 8) -> list[Image.Image]:
    """Load at most ``count`` images of a folder, evenly spaced in its sorted file list.

    Raises:
        ExportError: The folder does not exist.
        ValueError: The folder holds no image, or ``count`` is less than 1.
    """
    if count < 1:
        raise ValueError(f'{count} images: at least one is needed to compare features')
    if not Path(folder).is_dir():
        raise ExportError(
            f'no images to compare features on: {folder} does not exist. Give a folder with --data, or make the '
            'composites: tools/prepare_data.py composites --only classes'
        )
    paths = list_images(folder)
    chosen = paths[:: -(-len(paths) // count)]
    try:
        return [Image.fromarray(cv2.cvtColor(read_image(path), cv2.COLOR_BGR2RGB)) for path in chosen]
    except UnreadableImageError as error:
        raise ExportError(f'no image to compare features on: {error}') from error
