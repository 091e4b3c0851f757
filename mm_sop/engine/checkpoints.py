"""Finding and checking the checkpoint with which to go on."""

import pickle
import re
import zipfile
from pathlib import Path

import torch
from mmengine.runner.checkpoint import get_torch_safe_globals
from torch import nn


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says why and what to use instead."""


def describe_damage(path: str | Path) -> str | None:
    """Say what is wrong with a file that should be a training checkpoint.

    Tensors are mapped, not read: the check is quick for large files.

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
        checkpoint = _load_mapped(path)
    except (RuntimeError, OSError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        return f'it cannot be read ({str(error).splitlines()[0]})'
    missing = [key for key in ('meta', 'state_dict', 'message_hub', 'optimizer') if key not in checkpoint]
    return f'it is not the checkpoint of a training run: {", ".join(missing)} missing' if missing else None


def _load_mapped(path: Path) -> dict:
    with torch.serialization.safe_globals(get_torch_safe_globals()):
        return torch.load(path, map_location='cpu', mmap=True, weights_only=True)


def find_latest(work_dir: str | Path) -> Path | None:
    """The checkpoint that ``last_checkpoint`` names, or None where no run has saved one.

    Args:
        work_dir: Folder of the run; it may have been moved or copied since.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file():
        named = Path(pointer.read_text().strip())
        beside = work_dir / named.name
        return named if named.is_file() and not beside.is_file() else beside
    return next(iter(list_checkpoints(work_dir)), None)


def list_checkpoints(work_dir: str | Path) -> list[Path]:
    """The ``iter_*.pth`` of a run, the latest first."""
    numbered = [(re.fullmatch(r'iter_(\d+)\.pth', path.name), path) for path in Path(work_dir).glob('iter_*.pth')]
    found = [(int(match[1]), path) for match, path in numbered if match]
    return [path for _, path in sorted(found, reverse=True)]


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
