"""Reading of checkpoints from many sources, and loading them completely or not at all."""

import re
import zipfile
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import get_torch_safe_globals
from torch import Tensor, nn

_STATE_KEYS = ('state_dict', 'model', 'model_state_dict', 'state_dict_ema')
_MAX_LISTED = 12

# Where algorithms of MM-SOP and MMPretrain, and MoCo's released code, keep the network that is of use downstream.
_STUDENT = ('backbone.', 'module.encoder_q.', '')
BACKBONE_PREFIXES = dict(teacher=('teacher.backbone.', *_STUDENT), student=_STUDENT)
"""Prefixes of the backbone in a checkpoint, in the order of preference."""

# What may lie behind a difference, by its kind and the end of the name.
_HINTS = {
    ('shape', 'patch_embed.projection.weight'): 'another patch size or width: compare patch_size and arch',
    ('shape', 'pos_embed'): 'another number of positions: set img_size and patch_size to those of the checkpoint',
    ('missing', 'pos_embed'): 'no position embedding, without which a vision transformer cannot tell places apart',
}


_is_trusted = False


class WeightsError(RuntimeError):
    """Weights cannot be used; the message says why."""


@contextmanager
def trust_checkpoints(trusted: bool = True) -> Iterator[None]:
    """Let code in all checkpoints that are read meanwhile run, by whatever part of the program.

    Args:
        trusted: False for no change.
    """
    global _is_trusted
    before = _is_trusted
    _is_trusted = trusted or before
    try:
        yield
    finally:
        _is_trusted = before


def read_state_dict(path: str | Path, network: str = 'teacher', trusted: bool = False) -> dict[str, Tensor]:
    """Read the weights of a checkpoint without running code from it.

    Args:
        path: File of PyTorch, with the weights themselves or with a dictionary that has them as ``state_dict`` or
            ``model``; or a ``.safetensors`` file.
        network: ``'teacher'`` or ``'student'``, where the dictionary has both beside each other, as those of DINO.
        trusted: Whether code in it may run.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        WeightsError: The file is missing, damaged, needs code to be read, or holds no weights.
    """
    return find_state_dict(read_checkpoint(path, trusted), str(path), network)


def read_checkpoint(
    path: str | Path,
    trusted: bool = False,
    map_location: str | torch.device | Callable = 'cpu',
    mmap: bool = True,
):
    """Read all of a checkpoint; see :func:`read_state_dict`.

    Args:
        path: The file.
        trusted: Whether code in it may run.
        map_location: Where tensors go, see :func:`torch.load`.
        mmap: Whether tensors stay in the file until they are needed. It must not change until then.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in ('.pth', '.safetensors'))
        raise WeightsError(
            f'{path} is a folder: give a file with weights, {" or ".join(files) or "there is none in it"}'
        )
    if not path.is_file():
        raise WeightsError(f'no checkpoint {path.absolute()}')
    if path.suffix == '.safetensors':
        return _read_safetensors(path)
    try:
        return load_verified(path, trusted, map_location, mmap)
    except (OSError, ImportError, AttributeError) as error:
        raise WeightsError(f'{path} cannot be read: {error}{_name_sound(path)}') from error
    except Exception as error:  # unpicklers raise almost anything on broken bytes
        raise WeightsError(f'{path} cannot be read: {diagnose(path, error)}{_name_sound(path)}') from error


def find_state_dict(content, source: str, network: str = 'teacher') -> dict[str, Tensor]:
    """The weights in the content of a checkpoint; see :func:`read_state_dict`."""
    if isinstance(content, Mapping):
        keys = (*_STATE_KEYS, network)
        content = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise WeightsError(f'{source} holds no weights: expected tensors by name, or a dictionary with `state_dict`')


def load_verified(
    path: Path, trusted: bool = False, map_location: str | torch.device | Callable = 'cpu', mmap: bool = True
):
    """:func:`torch.load` of a file whose checksums are right; without code unless it is trusted."""
    trusted, is_archive = trusted or _is_trusted, zipfile.is_zipfile(path)
    if is_archive:
        _verify_archive(path)
    with torch.serialization.safe_globals(_safe_globals()):
        return torch.load(path, map_location=map_location, mmap=mmap and is_archive, weights_only=not trusted)


def _verify_archive(path: Path) -> None:
    """Compare all checksums, which PyTorch writes but does not read."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        # After torch.serialization.set_crc32_options(False) there are none.
        for record in records if any(record.CRC for record in records) else ():
            with archive.open(record) as file:
                while file.read(2**22):
                    pass


def _safe_globals() -> list:
    """What checkpoints of MMEngine and, for their arguments, of DINO and its kin may name."""
    # With `getattr` itself a pickle would reach any attribute of any object, such as `builtins.exec`.
    allowed = [each for each in get_torch_safe_globals() if each is not getattr]
    return [*allowed, (_get_statistic, 'builtins.getattr'), Namespace]


def _get_statistic(owner: type, name: str) -> Callable:
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise UnpicklingError(f'it asks for the attribute {name!r}, which no log needs')
    return getattr(owner, name)


def _name_sound(path: Path) -> str:
    """The newest other checkpoint of the same run whose checksums are right."""
    others = list_checkpoints(path.parent) if re.fullmatch(r'iter_\d+\.pth', path.name) else []
    sound = next((other for other in others if other.name != path.name and _is_intact(other)), None)
    return f'. The newest intact checkpoint beside it is {sound}' if sound else ''


def _is_intact(path: Path) -> bool:
    try:
        _verify_archive(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False
    return True


def list_checkpoints(work_dir: str | Path) -> list[Path]:
    """The ``iter_*.pth`` of a run, the latest first."""
    numbered = [(re.fullmatch(r'iter_(\d+)\.pth', path.name), path) for path in Path(work_dir).glob('iter_*.pth')]
    found = [(int(match[1]), path) for match, path in numbered if match]
    return [path for _, path in sorted(found, reverse=True)]


def diagnose(path: Path, error: Exception) -> str:
    """Say what is wrong with a file that :func:`load_verified` cannot read."""
    code = re.search(r'GLOBAL ([\w.]*\w)', str(error))
    if code:
        return (
            f'it holds the Python object {code[1]}, which would run code. If you trust where it comes from, '
            f'`tools/export.py {path} --trust --to safetensors` saves the tensors of its encoder alone; the '
            'other tools take --trust as well'
        )
    damaged = re.search(r"Bad CRC-32 for file '[^/]*/?(.*)'", str(error))
    if damaged:
        return f'it is damaged, the checksum of its part {damaged[1]} is wrong: copy or download it again'
    with path.open('rb') as file:
        start = file.read(64).lstrip()
    if not path.stat().st_size:
        return 'it is empty'
    if start.startswith(b'PK') and not zipfile.is_zipfile(path):
        return f'its end is missing, there are {path.stat().st_size:,} bytes only: copy or download it again'
    if start.startswith(b'<'):
        return 'it is a web page, as failed downloads leave it'
    if start.startswith(b'version https://git-lfs'):
        return 'it is a pointer of Git LFS: fetch the file itself by `git lfs pull`'
    return 'it is damaged or cut off, or torch.save has not written it'


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise WeightsError(f'{path}: `pip install safetensors` to read this format') from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f'{path} cannot be read: {error}') from error


def load_complete(
    module: nn.Module, state_dict: Mapping[str, Tensor], source: str, ignored: Sequence[str] = ()
) -> None:
    """Load weights into a module if they are all of it and nothing else.

    Args:
        module: The module.
        state_dict: Tensors by the names that they have in the module.
        source: Where they come from, for the message.
        ignored: Beginnings of names that may be missing or superfluous.

    Raises:
        WeightsError: Names or shapes differ; the message has a table of them. The module is unchanged then.
    """
    given = {name: value for name, value in state_dict.items() if not name.startswith(tuple(ignored))}
    expected = {name: value for name, value in module.state_dict().items() if not name.startswith(tuple(ignored))}
    rows = describe_mismatch(expected, given)
    if rows:
        raise WeightsError(f'{source} does not fit {type(module).__name__}:\n{format_mismatch(rows)}')
    module.load_state_dict(given, strict=False)


def describe_mismatch(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[tuple[str, str, str]]:
    """Compare two state dicts.

    Args:
        expected: That of the module.
        given: That of the checkpoint. Counters of BatchNorm batches may be missing, as in old checkpoints.

    Returns:
        Problem (``'missing'``, ``'unexpected'`` or ``'shape'``), name and details of every difference.
    """
    rows = [
        ('missing', name, str(tuple(value.shape)))
        for name, value in expected.items()
        if name not in given and not name.endswith('num_batches_tracked')
    ]
    rows += [('unexpected', name, str(tuple(value.shape))) for name, value in given.items() if name not in expected]
    rows += [
        ('shape', name, f'{tuple(given[name].shape)}, expected {tuple(value.shape)}')
        for name, value in expected.items()
        if name in given and given[name].shape != value.shape
    ]
    return rows


def format_mismatch(rows: Sequence[tuple[str, str, str]]) -> str:
    """Set differences as a table of at most 12 lines for each kind, with their numbers and likely reasons.

    Args:
        rows: From :func:`describe_mismatch`.
    """
    lines = []
    for problem in ('missing', 'unexpected', 'shape'):
        found = [(name, details) for kind, name, details in rows if kind == problem]
        width = max((len(name) for name, _ in found[:_MAX_LISTED]), default=0)
        lines += [f'  {problem:<11}{name:<{width}}  {details}' for name, details in found[:_MAX_LISTED]]
        if len(found) > _MAX_LISTED:
            lines.append(f'  {problem:<11}... {len(found)} in all')
    for (problem, suffix), hint in _HINTS.items():
        if any(kind == problem and name.endswith(suffix) for kind, name, _ in rows):
            lines.append(f'The checkpoint has {hint}.')
    return '\n'.join(lines)


def find_prefix(
    state_dict: Mapping[str, Tensor],
    names: Collection[str] | Mapping[str, Tensor],
    preferred: Sequence[str],
    source: str,
    ignored: Sequence[str] = (),
) -> str:
    """Find under which prefix a checkpoint holds a module.

    Args:
        state_dict: Tensors of the whole checkpoint.
        names: Names in the module's own state dict; or that itself, for a message with shapes.
        preferred: Prefixes that win, in this order, where there are several.
        source: Where the weights come from, for the message.
        ignored: Beginnings of names that do not matter.

    Returns:
        The prefix, possibly empty.

    Raises:
        WeightsError: No prefix has all names, the preferred one lacks some, or several have all and none is preferred.
            The message has a table of the differences from the closest one.
    """
    needed = _without(names, ignored)
    first = next(iter(needed))
    found = {key.removesuffix(first) for key in state_dict if key.endswith(first)}
    found = sorted(prefix for prefix in found if not prefix or prefix.endswith('.'))
    counts = {prefix: sum(prefix + name in state_dict for name in needed) for prefix in (*preferred, *found)}
    complete = [prefix for prefix in counts if counts[prefix] == len(needed)]
    # Of what is there in part the rest is missing: another network in its place would go unnoticed.
    closest = next((prefix for prefix in preferred if prefix in complete or (prefix and counts[prefix])), None)
    if closest is None and len(complete) > 1:
        raise WeightsError(f'{source} holds several such networks: choose one of the prefixes {complete}')
    if closest is None:
        # Where no name is found, a beginning that the checkpoint has tells more.
        closest = max(counts, key=lambda p: (counts[p], any(key.startswith(p) for key in state_dict)), default='')
    if closest in complete:
        return closest
    given = _without(strip_prefix(state_dict, closest), ignored)
    rows = [(problem, closest + name, details) for problem, name, details in _compare(needed, given)]
    missing = sum(problem == 'missing' for problem, _, _ in rows)
    beginnings = sorted({key.split('.')[0] for key in state_dict})
    raise WeightsError(
        f'{source} does not hold this network as a whole, {missing} of {len(needed)} tensors are missing:\n'
        f'{format_mismatch(rows)}\nIts names begin with {", ".join(beginnings)}'
    )


def _without(entries: Collection[str], ignored: Sequence[str]) -> Collection[str]:
    """Entries whose names matter; a mapping stays one."""
    beginnings = tuple(ignored)
    kept = [name for name in entries if not name.endswith('num_batches_tracked') and not name.startswith(beginnings)]
    return {name: entries[name] for name in kept} if isinstance(entries, Mapping) else kept


def _compare(needed: Collection[str], given: Mapping[str, Tensor]) -> list[tuple[str, str, str]]:
    if isinstance(needed, Mapping):
        return describe_mismatch(needed, given)
    missing = [('missing', name, '') for name in needed if name not in given]
    return missing + [('unexpected', name, '') for name in given if name not in needed]


def strip_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
