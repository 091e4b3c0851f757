"""Finding and checking the checkpoint with which to go on."""

import logging
import os
import zipfile
from pathlib import Path

from mmengine.logging import print_log
from torch import Tensor, nn

from mm_sop.engine.weights import (
    WeightsError,
    describe_mismatch,
    diagnose,
    find_state_dict,
    format_mismatch,
    list_checkpoints,
    load_verified,
)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says why and what to use instead."""


def describe_damage(path: str | Path) -> str | None:
    """Say what is wrong with a file that should be a training checkpoint.

    All of it is read once, to compare its checksums.

    Args:
        path: The file.

    Returns:
        The fault in words, or None if the file is a readable checkpoint of a run.
    """
    path = Path(path)
    if not path.is_file():
        return 'there is no such file'
    if path.stat().st_size == 0:
        return 'it is empty'
    if not zipfile.is_zipfile(path):
        return f'it is truncated or no checkpoint ({path.stat().st_size:,} bytes)'
    try:
        checkpoint = load_verified(path)
    except Exception as error:  # unpicklers raise almost anything on broken bytes
        return f'it cannot be read ({diagnose(path, error)})'
    if not isinstance(checkpoint, dict):
        return 'it is not the checkpoint of a training run'
    missing = [key for key in ('meta', 'state_dict', 'message_hub', 'optimizer') if key not in checkpoint]
    return f'it is not the checkpoint of a training run: {", ".join(missing)} missing' if missing else None


def find_latest(work_dir: str | Path) -> Path | None:
    """The checkpoint that ``last_checkpoint`` names, or None where no run has saved one.

    Where that file is damaged, a warning says so and the newest checkpoint counts.

    Args:
        work_dir: Folder of the run; it may have been moved or copied since.

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
    named = _read_pointer(pointer)
    if named is None:
        instead = f'the newest checkpoint is used, {newest}' if newest else 'there is no checkpoint beside it either'
        print_log(f'{pointer} is damaged, it names no checkpoint: {instead}', 'current', logging.WARNING)
        return newest
    beside = work_dir / named.name
    return named if named.is_file() and not beside.is_file() else beside


def _read_pointer(pointer: Path) -> Path | None:
    text = os.fsdecode(pointer.read_bytes()).strip()
    name = Path(text).name
    return Path(text) if name and name.isprintable() and '\0' not in text else None


def check_resumable(path: str | Path) -> None:
    """Refuse a damaged checkpoint and name the newest sound one beside it.

    Args:
        path: The checkpoint.

    Raises:
        CheckpointError: It cannot be used.
    """
    fault = describe_damage(path)
    if fault is None:
        return
    path = Path(path)
    others = (other for other in list_checkpoints(path.parent) if other.name != path.name)
    sound = next((other for other in others if describe_damage(other) is None), None)
    advice = f'go on with another one: --resume {sound}' if sound else 'no other checkpoint beside it is readable'
    raise CheckpointError(f'cannot resume from {path}: {fault}; {advice}')


def check_fits(model: nn.Module, state_dict: dict) -> None:
    """Refuse a state dict that belongs to another model.

    Args:
        model: The model that is to go on training.
        state_dict: From the checkpoint.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state_dict.items()}
    faults = [f'missing {name}' for name in expected.keys() - found.keys()]
    faults += [f'unexpected {name}' for name in found.keys() - expected.keys()]
    faults += [
        f'{name} is {found[name]}, expected {expected[name]}'
        for name in expected.keys() & found.keys()
        if expected[name] != found[name]
    ]
    if faults:
        listing = ''.join(f'\n  {fault}' for fault in sorted(faults)[:8])
        raise CheckpointError(
            f'the checkpoint belongs to another model, {len(faults)} tensors differ:{listing}\n'
            'Resume with the config of that run; to start from its weights only, set load_from without --resume'
        )


def check_start(model: nn.Module, checkpoint: object, source: str) -> dict[str, Tensor]:
    """Refuse to start from weights whose backbone is another one, where MMEngine would keep the random weights.

    Heads, necks and other parts around the backbone may differ, as in fine-tuning; MMEngine lists them. A teacher that
    the checkpoint lacks gets the weights of the student, as at the beginning of every run.

    Args:
        model: The model.
        checkpoint: Content of the file.
        source: Where it comes from, for the message.

    Returns:
        The weights by their names in the model.

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
    """Tensors, such as position embeddings, that their modules bring into shape when they are loaded."""
    return {
        f'{prefix}.{name}'.lstrip('.')
        for prefix, module in model.named_modules()
        if module._load_state_dict_pre_hooks
        for name in (*module._parameters, *module._buffers)
    }
