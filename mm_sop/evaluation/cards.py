"""Protocol cards: everything that a figure depends on, so that two figures can be compared."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import mmengine
import mmpretrain
import numpy as np
import torch
from torch.utils.data import Dataset

from mm_sop import __version__
from mm_sop.evaluation.cache import READOUTS, content_key, describe_file, describe_pictures
from mm_sop.evaluation.encoders import hash_file
from mm_sop.evaluation.knn import read_labels
from mm_sop.evaluation.protocol import EvaluationContext, Protocol


def make_card(name: str, protocol: Protocol, context: EvaluationContext, data: Mapping) -> dict:
    """Describe an evaluation before it runs.

    Args:
        name: Registered name of the protocol.
        protocol: The protocol.
        context: What it runs with.
        data: What :meth:`Protocol.find_data` returned.

    Returns:
        Protocol with version and options, encoder with the hash of its checkpoint, transform, layers, data, lists, seed
        and type, ready for JSON. The same card means the same figures.
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


def card_key(card: Mapping) -> str:
    """Short hash of a card."""
    return content_key(card)


def describe_source(source: Dataset | str | Path) -> dict:
    """Identify a data set by its listing, content, labels and identities, or a file or folder by names and content.

    Content is what :func:`describe_file` sees of it. A listing beside a folder, ``<folder>.json``, is part of it.

    Args:
        source: One of what :meth:`Protocol.find_data` returns.

    Returns:
        Number of pictures or files, and hashes.
    """
    if isinstance(source, (str, Path)):
        return _describe_files(Path(source))
    labels = {kind: read_labels(source, kind) for kind in ('class', 'identity')}
    hashes = {
        kind: None if found is None else content_key(dict(labels=found.tolist())) for kind, found in labels.items()
    }
    return dict(describe_pictures(source), labels=hashes['class'], identities=hashes['identity'])


def software_versions() -> dict[str, str]:
    """Versions of what computes the figures."""
    modules = dict(torch=torch, numpy=np, mmengine=mmengine, mmpretrain=mmpretrain)
    return dict(mm_sop=__version__, **{name: module.__version__ for name, module in modules.items()})


def _describe_files(path: Path) -> dict:
    files = [path] if path.is_file() else sorted(file for file in path.rglob('*') if file.is_file())
    beside = Path(f'{os.path.normpath(path)}.json')
    files += [beside] if beside.is_file() else []
    listing = [(os.path.relpath(file, path), describe_file(file)) for file in files]
    return dict(name=path.name, num_files=len(files), sha256=content_key(dict(files=listing)))
