"""Reads checkpoints of many sources, and loads them completely or not at all.

In all functions, ``source`` says where weights come from, for messages, and ``network`` is ``'teacher'`` or
``'student'`` where a checkpoint has both.
"""

import hashlib
import mmap
import re
import struct
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, cast

import safetensors.torch
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import get_torch_safe_globals
from torch import Tensor, nn

from mm_sop.utils.failures import UserError

Device = str | torch.device | Callable | None
"""Where tensors go, see ``map_location`` of :func:`torch.load`."""

_STATE_KEYS = ('state_dict', 'model', 'model_state_dict', 'state_dict_ema')
_MAX_LISTED = 12

# Where algorithms of MM-SOP and MMPretrain, and MoCo's released code, keep the network that is of use downstream.
_STUDENT = ('backbone.', 'module.encoder_q.', '')
BACKBONE_PREFIXES = dict(teacher=('teacher.backbone.', *_STUDENT), student=_STUDENT)
"""State-dict key prefixes of the backbone, in the order of preference."""

MASK_TOKEN = 'mask_token'
"""Key that a backbone and its checkpoint may lack: the teacher has no mask token, and nothing is masked downstream."""

NOT_ENCODER = (MASK_TOKEN, 'masked_embed', 'head.', 'heads.', 'fc.', 'neck.', 'dino_head.', 'ibot_head.')
"""Key prefixes of what checkpoints of other libraries hold beside an encoder, for pretraining or classification."""

# What may lie behind a difference, by its kind and the end of the key.
_HINTS = {
    ('shape', 'patch_embed.projection.weight'): 'another patch size or width: compare patch_size and arch',
    ('shape', 'pos_embed'): 'another number of positions: set img_size and patch_size to those of the checkpoint',
    ('missing', 'pos_embed'): 'no position embedding, without which a vision transformer cannot tell patches apart',
}

_is_trusted = False


class WeightsError(UserError, RuntimeError):
    """Weights cannot be used; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read: the file, the saved object or tensors by name, and the file's SHA-256."""

    path: Path
    content: Any
    sha256: str

    def state_dict(self, network: str = 'teacher') -> dict[str, Tensor]:
        """Return the weights; see :func:`find_state_dict`."""
        return find_state_dict(self.content, str(self.path), network)


@contextmanager
def trust_checkpoints(trusted: bool = True) -> Iterator[None]:
    """Let code in all checkpoints that are read within the block run, whoever reads them; False changes nothing."""
    global _is_trusted
    before = _is_trusted
    _is_trusted = trusted or before
    try:
        yield
    finally:
        _is_trusted = before


def read_checkpoint(path: str | Path | Checkpoint, trusted: bool = False, map_location: Device = 'cpu') -> Checkpoint:
    """Read, verify and hash a checkpoint in one pass, without running code from it.

    Args:
        path: File of PyTorch or a ``.safetensors`` file; a checkpoint that was read before is returned as it is.
        trusted: Whether code in it may run.

    Raises:
        WeightsError: The file is missing or damaged, or reading it would run code.
    """
    if isinstance(path, Checkpoint):
        return path
    path = Path(path)
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in ('.pth', '.safetensors'))
        choice = ' or '.join(files) or 'there is none in it'
        raise WeightsError(f'{path} is a folder: give a file with weights, {choice}')
    if not path.is_file():
        raise WeightsError(f'no checkpoint {path.absolute()}')
    try:
        return load_verified(path, trusted, map_location)
    except WeightsError:
        raise
    except (OSError, ImportError, AttributeError) as error:
        raise WeightsError(f'{path} cannot be read: {error}{_name_intact(path)}') from error
    except Exception as error:  # unpicklers raise almost anything on broken bytes
        raise WeightsError(f'{path} cannot be read: {diagnose(path, error)}{_name_intact(path)}') from error


def read_state_dict(path: str | Path | Checkpoint, trusted: bool = False) -> dict[str, Tensor]:
    """Read the weights of a checkpoint; see :func:`read_checkpoint` and :func:`find_state_dict`."""
    return read_checkpoint(path, trusted).state_dict()


def find_state_dict(content: object, source: str, network: str = 'teacher') -> dict[str, Tensor]:
    """Find the weights in a checkpoint: tensors by name, or a dictionary of these as ``state_dict``, ``model`` or so.

    DINO's checkpoints have teacher and student side by side. Raises a :class:`WeightsError` if there are no weights.
    """
    if isinstance(content, Mapping):
        keys = (*_STATE_KEYS, network)
        content = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise WeightsError(f'{source} holds no weights: expected tensors by name, or a dictionary with `state_dict`')


def load_verified(path: Path, trusted: bool = False, map_location: Device = 'cpu') -> Checkpoint:
    """Read a file whose checksums are right; like :func:`read_checkpoint`, but with the errors of the readers."""
    with path.open('rb') as file:
        if not path.stat().st_size:
            raise EOFError('the file is empty')
        # Hash, checksums and tensors come from one mapping of the file. Nothing refers to it afterwards: training may
        # remove or replace the file.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            digest = hashlib.sha256(data).hexdigest()
            if path.suffix == '.safetensors':
                try:
                    return Checkpoint(path, safetensors.torch.load(data[:]), digest)
                except safetensors.SafetensorError as error:
                    raise WeightsError(f'{path} cannot be read: {error}') from error
            if zipfile.is_zipfile(file):
                _verify_archive(zipfile.ZipFile(file), data)
            # What checkpoints of MMEngine and, for their arguments, of DINO and its relatives may name. With `getattr`
            # itself a pickle would reach any attribute of any object, such as `builtins.exec`.
            allowed = [each for each in get_torch_safe_globals() if each is not getattr]
            with torch.serialization.safe_globals([*allowed, (_get_statistic, 'builtins.getattr'), Namespace]):
                is_safe = not (trusted or _is_trusted)
                content = torch.load(cast(IO[bytes], data), map_location=map_location, weights_only=is_safe)
            return Checkpoint(path, content, digest)


def _verify_archive(archive: zipfile.ZipFile, data: mmap.mmap) -> None:
    """Compare all checksums, which PyTorch writes but does not read."""
    records = archive.infolist()
    # After torch.serialization.set_crc32_options(False) there are none.
    for record in records if any(record.CRC for record in records) else ():
        if record.compress_type == zipfile.ZIP_STORED:
            # The local header's name and extra field have lengths of their own.
            lengths = struct.unpack_from('<HH', data, record.header_offset + 26)
            start = record.header_offset + 30 + sum(lengths)
            with memoryview(data) as view, view[start : start + record.file_size] as part:
                if len(part) != record.file_size or zlib.crc32(part) != record.CRC:
                    raise zipfile.BadZipFile(f'Bad CRC-32 for file {record.filename!r}')
        else:
            archive.read(record)


def _get_statistic(owner: type, name: str) -> Callable:
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise UnpicklingError(f'it asks for the attribute {name!r}, which no log needs')
    return getattr(owner, name)


def _name_intact(path: Path) -> str:
    """Name the newest other checkpoint of the same run whose checksums are right."""
    checkpoints = list_checkpoints(path.parent) if re.fullmatch(r'iter_\d+\.pth', path.name) else []
    for other in [each for each in checkpoints if each.name != path.name]:
        with suppress(OSError, ValueError, NotImplementedError, zipfile.BadZipFile), zipfile.ZipFile(other) as archive:
            if archive.testzip() is None:
                return f'. The newest intact checkpoint beside it is {other}'
    return ''


def list_checkpoints(work_dir: str | Path) -> list[Path]:
    """List the ``iter_*.pth`` of a run, the latest first."""
    paths = [path for path in Path(work_dir).glob('iter_*.pth') if re.fullmatch(r'iter_\d+', path.stem)]
    return sorted(paths, key=lambda path: (int(path.stem.removeprefix('iter_')), path), reverse=True)


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


def load_backbone(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    source: str,
    network: str = 'teacher',
    prefix: str | None = None,
    ignored: Sequence[str] = (),
) -> str:
    """Load a backbone out of the weights of a checkpoint, completely or not at all.

    Args:
        module: The backbone.
        state_dict: Tensors of the whole checkpoint.
        prefix: State-dict key prefix, which is returned. Detected if None.
        ignored: Key prefixes that may be missing or unexpected, beside :data:`MASK_TOKEN`.

    Raises:
        WeightsError: See :func:`find_prefix` and :func:`load_complete`.
    """
    ignored = (MASK_TOKEN, *ignored)
    if prefix is None:
        prefix = find_prefix(state_dict, module.state_dict(), BACKBONE_PREFIXES[network], source, ignored)
    load_complete(module, strip_prefix(state_dict, prefix), f'{source} (prefix {prefix!r})', ignored)
    return prefix


def load_complete(
    module: nn.Module, state_dict: Mapping[str, Tensor], source: str, ignored: Sequence[str] = ()
) -> None:
    """Load weights into a module if they are all of it and nothing else, but for the ``ignored`` key prefixes.

    Raises:
        WeightsError: Keys or shapes differ; the message has a table of them. The module is unchanged then.
    """
    given = {name: value for name, value in state_dict.items() if not name.startswith(tuple(ignored))}
    expected = {name: value for name, value in module.state_dict().items() if not name.startswith(tuple(ignored))}
    rows = describe_mismatch(expected, given)
    if rows:
        raise WeightsError(f'{source} does not fit {type(module).__name__}:\n{format_mismatch(rows)}')
    module.load_state_dict(given, strict=False)


def describe_mismatch(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], exact: bool = False
) -> list[tuple[str, str, str]]:
    """Compare the state dict of a module with that of a checkpoint.

    Old checkpoints lack the counters of BatchNorm batches, whose absence is a difference only if ``exact``.

    Returns:
        Problem (``'missing'``, ``'unexpected'`` or ``'shape'``), key and details of every difference.
    """
    missing, shapes = [], []
    for name, value in expected.items():
        if name not in given:
            if exact or not name.endswith('num_batches_tracked'):
                missing.append(('missing', name, str(tuple(value.shape))))
        elif given[name].shape != value.shape:
            shapes.append(('shape', name, f'{tuple(given[name].shape)}, expected {tuple(value.shape)}'))
    unexpected = [
        ('unexpected', name, str(tuple(value.shape))) for name, value in given.items() if name not in expected
    ]
    return missing + unexpected + shapes


def format_mismatch(rows: Sequence[tuple[str, str, str]]) -> str:
    """Format :func:`describe_mismatch` as a table of at most 12 lines a kind, with their number and likely reasons."""
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
    """Find the key prefix under which a checkpoint holds a module.

    Args:
        state_dict: Tensors of the whole checkpoint.
        names: Keys of the module's own state dict; or that itself, for a message with shapes.
        preferred: Prefixes that win, in this order, where there are several.
        ignored: Key prefixes that do not matter.

    Returns:
        The prefix, possibly empty.

    Raises:
        WeightsError: No prefix has all keys, the preferred one lacks some, or several have all and none is preferred.
            The message has a table of the differences from the closest one.
    """
    needed = _without(names, ignored)
    first = next(iter(needed))
    endings = {key.removesuffix(first) for key in state_dict if key.endswith(first)}
    found = sorted(prefix for prefix in endings if not prefix or prefix.endswith('.'))
    counts = {prefix: sum(prefix + name in state_dict for name in needed) for prefix in (*preferred, *found)}
    complete = [prefix for prefix in counts if counts[prefix] == len(needed)]
    # A preferred prefix with some of the keys is a damaged network: another one in its place would go unnoticed.
    closest = next((prefix for prefix in preferred if prefix in complete or (prefix and counts[prefix])), None)
    if closest is None and len(complete) > 1:
        raise WeightsError(f'{source} holds several such networks: choose one of the prefixes {complete}')
    if closest is None:
        # Where no key is found, a prefix that the checkpoint has tells more.
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


def _without(entries: Collection[str], ignored: Sequence[str]) -> Any:
    """Entries whose keys matter; a mapping stays one."""
    kept = [key for key in entries if not key.endswith('num_batches_tracked') and not key.startswith(tuple(ignored))]
    return {key: entries[key] for key in kept} if isinstance(entries, Mapping) else kept


def _compare(needed: Collection[str], given: Mapping[str, Tensor]) -> list[tuple[str, str, str]]:
    if isinstance(needed, Mapping):
        return describe_mismatch(needed, given)
    missing = [('missing', name, '') for name in needed if name not in given]
    return missing + [('unexpected', name, '') for name in given if name not in needed]


def strip_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
