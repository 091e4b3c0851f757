"""Finds and checks the checkpoint from which training resumes or starts."""

import logging
import os
import zipfile
from pathlib import Path

from mmengine.logging import print_log
from torch import Tensor, nn

from mm_sop.encoders.checkpoint import (
    WeightsError,
    describe_mismatch,
    diagnose,
    find_state_dict,
    format_mismatch,
    list_checkpoints,
    load_verified,
)


class CheckpointError(WeightsError):
    """A run cannot be resumed from a checkpoint; the message says why and what to use instead."""


def describe_damage(path: str | Path) -> str | None:
    """Say what is wrong with a file that should be a training checkpoint.

    Returns:
        The fault in words, or None if the file is a readable checkpoint of a run with right checksums.
    """
    path = Path(path)
    if not path.is_file():
        return 'there is no such file'
    if path.stat().st_size == 0:
        return 'it is empty'
    if not zipfile.is_zipfile(path):
        return f'it is truncated or no checkpoint ({path.stat().st_size:,} bytes)'
    try:
        content = load_verified(path).content
    except Exception as error:  # unpicklers raise almost anything on broken bytes
        return f'it cannot be read ({diagnose(path, error)})'
    if not isinstance(content, dict):
        return 'it is not the checkpoint of a training run'
    missing = [key for key in ('meta', 'state_dict', 'message_hub', 'optimizer') if key not in content]
    return f'it is not the checkpoint of a training run: {", ".join(missing)} missing' if missing else None


def find_latest(work_dir: str | Path) -> Path | None:
    """Return the checkpoint that ``last_checkpoint`` names, or None where no run has saved one.

    Where that file is damaged, a warning says so and the newest checkpoint is returned. The folder may have been moved
    or copied since the run.

    Raises:
        CheckpointError: ``last_checkpoint`` is a folder: no checkpoint could ever be saved.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    newest = next(iter(list_checkpoints(work_dir)), None)
    if pointer.is_dir():
        raise CheckpointError(f'{pointer} is a folder, but training writes a file of this name: move it away')
    if not pointer.is_file():
        return newest
    text = os.fsdecode(pointer.read_bytes()).strip()
    named = Path(text)
    if not named.name or not named.name.isprintable() or '\0' in text:
        instead = f'the newest checkpoint is used, {newest}' if newest else 'there is no checkpoint beside it either'
        print_log(f'{pointer} is damaged, it names no checkpoint: {instead}', 'current', logging.WARNING)
        return newest
    beside = work_dir / named.name
    return named if named.is_file() and not beside.is_file() else beside


def check_resumable(path: str | Path) -> None:
    """Refuse a damaged checkpoint and name the newest intact one beside it.

    Raises:
        CheckpointError: It cannot be used.
    """
    fault = describe_damage(path)
    if fault is None:
        return
    path = Path(path)
    others = (other for other in list_checkpoints(path.parent) if other.name != path.name)
    intact = next((other for other in others if describe_damage(other) is None), None)
    advice = f'go on with another one: --resume {intact}' if intact else 'no other checkpoint beside it is readable'
    raise CheckpointError(f'cannot resume from {path}: {fault}; {advice}')


def check_fits(model: nn.Module, state_dict: dict) -> None:
    """Refuse to resume from a state dict that belongs to another model.

    Raises:
        CheckpointError: Keys or shapes differ; the message has a table of them.
    """
    rows = describe_mismatch(model.state_dict(), state_dict, exact=True)
    if rows:
        raise CheckpointError(
            f'the checkpoint belongs to another model, {len(rows)} tensors differ:\n{format_mismatch(rows)}\n'
            'Resume with the config of that run; to start from its weights only, set load_from without --resume'
        )


def check_start(model: nn.Module, checkpoint: object, source: str) -> dict[str, Tensor]:
    """Refuse to start from weights of another backbone, where MMEngine would keep the random weights.

    Heads, necks and other modules around the backbone may differ, as in fine-tuning; MMEngine lists them. A teacher
    that the checkpoint lacks gets the weights of the student, as at the beginning of every run. Returns the weights by
    their keys in the model. ``source`` tells where the checkpoint comes from, for the message.

    Raises:
        WeightsError: Tensors of the backbone are missing or of another shape; the message has a table of them.
    """
    state = {name.removeprefix('module.'): value for name, value in find_state_dict(checkpoint, source).items()}
    expected = model.state_dict()
    resized = _resized_on_loading(model)
    prefix = 'backbone.' if hasattr(model, 'backbone') else ''
    rows = [
        (problem, name, details)
        for problem, name, details in describe_mismatch(expected, state)
        if name.startswith(prefix) and (problem == 'missing' or (problem == 'shape' and name not in resized))
    ]
    if rows:
        raise WeightsError(
            f'load_from: {source} does not fit the backbone of {type(model).__name__}, which would be trained from '
            f'random weights:\n{format_mismatch(rows)}\nUse the config of its run, or start from its backbone alone '
            'with --pretrained'
        )
    if not any(name.startswith('teacher.') for name in state):
        copies = {name: name.removeprefix('teacher.') for name in expected if name.startswith('teacher.')}
        state.update({name: state[own] for name, own in copies.items() if own in state})
    return state


def _resized_on_loading(model: nn.Module) -> set[str]:
    """Names of tensors, such as position embeddings, that their modules resize when they are loaded."""
    tensors = {}
    for prefix, module in model.named_modules():
        # Nothing public says that a module changes what it loads.
        if module._load_state_dict_pre_hooks:
            tensors.update(module.named_parameters(prefix, recurse=False))
            tensors.update(module.named_buffers(prefix, recurse=False))
    return set(tensors)
