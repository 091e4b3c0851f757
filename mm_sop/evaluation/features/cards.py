"""Protocol cards: everything that a score depends on, so that scores can be compared."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import mmengine
import mmpretrain
import numpy as np
import torch
from mmengine.dataset import BaseDataset

from mm_sop import __version__
from mm_sop.evaluation.context import EvaluationContext, Protocol
from mm_sop.evaluation.features.identity import content_key, describe_file, describe_images
from mm_sop.evaluation.features.readouts import READOUTS
from mm_sop.evaluation.labeled_data import read_labels
from mm_sop.utils.files import hash_file


def make_card(name: str, protocol: Protocol, context: EvaluationContext, data: Mapping) -> dict:
    """Describe an evaluation before it runs.

    Args:
        name: Registered name of the protocol.
        protocol: The protocol.
        context: Network and settings.
        data: What :meth:`Protocol.find_data` returned.

    Returns:
        Protocol with version and options, encoder with the hash of its checkpoint, transform, layers, data, lists, seed
        and type, JSON-serializable. Equal cards mean equal scores.
    """
    return dict(
        protocol=name,
        version=protocol.version,
        options=asdict(protocol),
        encoder=context.encoder.identity,
        transform=asdict(context.transform),
        layers={readout: READOUTS[readout] for readout in protocol.readouts},
        dtype=context.cache.dtype,
        data={key: describe_source(source) for key, source in data.items()},
        lists={key: hash_file(path) for key, path in protocol.find_lists(context).items()},
        seed=context.seed,
    )


def describe_source(source: BaseDataset | str | Path) -> dict:
    """Describe a dataset by its images, labels and identities, or a file or folder by names and content.

    Content is what :func:`describe_file` gives. A file list ``<folder>.json`` beside a folder is part of it.

    Args:
        source: One of the values of :meth:`Protocol.find_data`.

    Returns:
        Number of images or files, and hashes.
    """
    if isinstance(source, str | Path):
        return _describe_files(Path(source))
    labels = {kind: read_labels(source, kind) for kind in ('class', 'identity')}
    hashes = {
        kind: None if values is None else content_key(dict(labels=values.tolist())) for kind, values in labels.items()
    }
    return dict(describe_images(source), labels=hashes['class'], identities=hashes['identity'])


def software_versions() -> dict[str, str]:
    """Versions of the packages that compute the scores."""
    modules = dict(torch=torch, numpy=np, mmengine=mmengine, mmpretrain=mmpretrain)
    return dict(mm_sop=__version__, **{name: module.__version__ for name, module in modules.items()})


def _describe_files(path: Path) -> dict:
    files = [path] if path.is_file() else sorted(file for file in path.rglob('*') if file.is_file())
    file_list = Path(f'{os.path.normpath(path)}.json')
    files += [file_list] if file_list.is_file() else []
    described = [(os.path.relpath(file, path), describe_file(file)) for file in files]
    return dict(name=path.name, num_files=len(files), sha256=content_key(dict(files=described)))
