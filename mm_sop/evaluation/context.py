"""Interface of evaluation protocols: what a protocol gets, does and returns.

A protocol is a dataclass in a module of :mod:`mm_sop.evaluation.protocols`. Its fields are its options::

    @PROTOCOLS.register_module('nearest')
    @dataclass
    class NearestProtocol(Protocol):
        readout: str = 'global'

        @property
        def readouts(self):
            return (self.readout,)

        def find_data(self, context):
            folder = context.find('birds', 'class folders with images')
            return dict(birds=LabeledImages(folder, pipeline=context.transform.steps))

        def run(self, context, data):
            features = context.features(data['birds'], self.readout)
            accuracy, matrix = ...
            return ProtocolResult(dict(accuracy=Score(accuracy)), data=dict(confusion=matrix))

All processes call both methods and must return the same result. Take ``context.seed`` for everything random. Use
:meth:`EvaluationContext.part` to checkpoint long computations other than feature extraction. The result is stored under
a key of everything it depends on. How ``data`` is drawn is registered in :mod:`mm_sop.report.evaluation`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import get_comm_device, get_dist_info
from mmengine.logging import print_log
from mmengine.registry import Registry
from torch import Tensor
from torch.utils.data import Subset

from mm_sop.datasets.transforms.evaluation import EvaluationTransform
from mm_sop.encoders.encoder import Encoder
from mm_sop.encoders.projector import FrozenProjector
from mm_sop.evaluation.features.extraction import READOUTS, check_num_images, extract_features, gather_features
from mm_sop.evaluation.features.store import ArrayStore, FeatureCache
from mm_sop.evaluation.labeled_data import MissingDataError

PROTOCOLS = Registry('evaluation protocol', scope='mm_sop', locations=['mm_sop.evaluation.protocols'])
"""All protocols by the name that ``tools/evaluate.py --protocols`` takes."""

# Images that a process measures between two checkpoints.
_BLOCK = 1024


@dataclass
class EvaluationContext:
    """Network, data and settings of an evaluation.

    Attributes:
        encoder: The frozen network on its device.
        data: Folder of all datasets.
        work_dir: Folder of results, cache and other files.
        cache: Features on the disk.
        seed: Seed of everything random.
        batch_size: Images encoded at once by one process.
        readouts: Readouts that any of the protocols needs, see :data:`READOUTS`; one pass extracts all.
        projector: Projector that followed the encoder in pretraining, on its device, or None.
        parts: Folder of the partial results of the running protocol, or None to store none.
    """

    encoder: Encoder
    data: Path
    work_dir: Path
    cache: FeatureCache
    transform: EvaluationTransform = field(default_factory=EvaluationTransform)
    seed: int = 0
    batch_size: int = 256
    num_workers: int = 2
    readouts: Sequence[str] = ('global',)
    projector: FrozenProjector | None = None
    parts: Path | None = None

    @property
    def device(self) -> torch.device:
        """Device of the encoder."""
        return next(self.encoder.parameters()).device

    @property
    def setup(self) -> dict:
        """Network, data and transform, JSON-serializable; tells results of equally named checkpoints apart."""
        names = ('source', 'network', 'prefix', 'checkpoint_sha256')
        source, network, prefix, weights = (self.encoder.identity.get(name) or '' for name in names)
        network = f'{network} ({prefix})' if prefix else network
        return dict(source=source, network=network, weights=weights[:8], data=str(self.data), **asdict(self.transform))

    def features(self, dataset: BaseDataset, readout: str = 'global') -> Tensor:
        """Features of a dataset, (N, D), fp32, on the CPU: cached, or extracted by all processes together.

        The pipeline of the dataset is ``context.transform.steps``; the readout is one of :data:`READOUTS`.
        """
        wanted, transform = tuple(dict.fromkeys((*self.readouts, readout))), asdict(self.transform)
        return self.cache.read(self.encoder, dataset, transform, wanted, self.batch_size, self.num_workers)[readout]

    def part(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Compute a partial result once: an interrupted protocol continues after the stored ones.

        Args:
            name: Name, unique within the protocol; may contain slashes.
            compute: Returns the arrays. It must not wait for other processes, which may have theirs already.
        """
        if self.parts is None:
            return dict(compute())
        rank, world_size = get_dist_info()
        return ArrayStore(self.parts).compute(f'{name}_{rank}of{world_size}', compute)

    def map_images(
        self, dataset: BaseDataset, measure: Callable[[dict], Mapping[str, Tensor]], part: str
    ) -> dict[str, Tensor]:
        """Measure something for every image, on all processes and resumable.

        Args:
            dataset: The images, at least one for each process.
            measure: Maps a collated batch to named values, (B, n) each.
            part: Name of the measurement, see :meth:`part`.

        Returns:
            Values by name, (N, n), fp32, on the CPU of every process.
        """
        rank, world_size = get_dist_info()
        check_num_images(dataset, world_size)

        def encode(batch: dict) -> dict[str, Tensor]:
            return {name: values.float().cpu() for name, values in measure(batch).items()}

        def measure_chunk(chunk: BaseDataset) -> dict[str, np.ndarray]:
            measured = extract_features(encode, chunk, self.batch_size, self.num_workers)
            return {name: values.numpy() for name, values in measured.items()}

        rows = range(rank, len(dataset), world_size)
        blocks = []
        for start in range(0, len(rows), _BLOCK):
            chunk = Subset(dataset, rows[start : start + _BLOCK])
            blocks.append(self.part(f'{part}_{start}', partial(measure_chunk, chunk)))
            print_log(f'Measured {start + len(chunk):,} of {len(rows):,} images ({part})', logger='current')
        device = get_comm_device() if world_size > 1 else torch.device('cpu')
        measured = {name: torch.from_numpy(np.concatenate([block[name] for block in blocks])) for name in blocks[0]}
        return {name: gather_features(each.to(device), len(dataset)).cpu() for name, each in measured.items()}

    def project(self, encodings: Tensor) -> dict[str, Tensor]:
        """Apply the projector, if there is one, to global features, (N, D).

        Returns:
            ``encoding`` and the other outputs of :class:`FrozenProjector`, on the encoder's device.
        """
        encodings = encodings.to(self.device)
        return dict(encoding=encodings) if self.projector is None else self.projector(encodings)

    def find(self, name: str | Path, expected: str) -> Path:
        """Find a file or folder below :attr:`data`.

        Raises:
            MissingDataError: It does not exist; the message says what was ``expected`` there.
        """
        path = self.data / name
        if not path.exists():
            raise MissingDataError(f'{path} does not exist: expected {expected}')
        return path

    def find_any(self, names: Sequence[str], expected: str) -> dict[str, Path]:
        """Find those of several files or folders below :attr:`data` that exist.

        Raises:
            MissingDataError: None exists; the message says what was ``expected`` there.
        """
        found = {name: self.data / name for name in names if (self.data / name).exists()}
        if not found:
            raise MissingDataError(f'{self.data} has none of {", ".join(names)}: expected {expected}')
        return found


@dataclass(frozen=True)
class Score:
    """One score of a result.

    Attributes:
        value: The value; accuracies and fractions in [0, 1].
        error: Standard error, or standard deviation over repeated trials; None if there is none.
        percent: Whether it is shown in percent.
    """

    value: float
    error: float | None = None
    percent: bool = True


@dataclass
class ProtocolResult:
    """Result of a protocol.

    Attributes:
        scores: Scores by name, the most important first.
        card: Details of the computation that only the protocol knows (selected options, lists, number of
            queries), JSON-serializable.
        data: What charts and galleries show, see :func:`mm_sop.evaluation.results.pack_data`: nested dicts and lists of
            numbers, texts, paths and NumPy arrays, images as uint8 arrays.
    """

    scores: dict[str, Score]
    card: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)


@dataclass
class Protocol(ABC):
    """Base class of all protocols; the docstring of this module shows how to write one.

    Attributes:
        version: Bump when a code change affects results; cached results are then discarded. Files that a protocol
            itself stores need it in their key.
        presets: Options of the papers by name, selected with the option ``preset``.
    """

    version: ClassVar[int] = 1
    presets: ClassVar[Mapping[str, Mapping]] = {}

    @property
    def readouts(self) -> tuple[str, ...]:
        """The :data:`READOUTS` that the protocol reads by :meth:`EvaluationContext.features`."""
        return ()

    @abstractmethod
    def find_data(self, context: EvaluationContext) -> dict[str, Any]:
        """Find the data, without encoding anything.

        Returns:
            Datasets, or files and folders, by name. The result is stored under a key of their names and content.

        Raises:
            MissingDataError: The data is missing; the protocol is then listed as skipped.
        """

    def find_lists(self, context: EvaluationContext) -> dict[str, Path]:
        """Find further files that affect the scores, such as lists of images; their content is part of the key."""
        return {}

    @abstractmethod
    def run(self, context: EvaluationContext, data: dict[str, Any]) -> ProtocolResult:
        """Evaluate on what :meth:`find_data` returned."""


def protocol_names() -> list[str]:
    """Names of all protocols, sorted."""
    PROTOCOLS.import_from_location()
    return sorted(PROTOCOLS.module_dict)


def build_protocol(name: str, options: Mapping[str, Any] | None = None) -> Protocol:
    """Build a protocol by its registered name from values of its fields.

    The option ``preset`` selects one of its presets, which the others override.

    Raises:
        ValueError: Name, preset or option is unknown, or a value has the wrong type.
    """
    if name not in protocol_names():
        raise ValueError(f'no protocol {name!r}: choose among {", ".join(protocol_names())}')
    protocol = PROTOCOLS.get(name)
    options = dict(options or {})
    preset = options.pop('preset', None)
    if preset is not None and preset not in protocol.presets:
        known = ', '.join(protocol.presets) or 'none'
        raise ValueError(f'protocol {name} has no preset {preset!r}: its presets are {known}')
    names, hints = [option.name for option in fields(protocol)], get_type_hints(protocol)
    if unknown := ', '.join(sorted(set(options) - set(names))):
        raise ValueError(f'protocol {name} has no option {unknown}: its options are {", ".join(names)}')
    selected = {option: _check_option(f'{name}.{option}', value, hints[option]) for option, value in options.items()}
    built = protocol(**{**protocol.presets.get(preset, {}), **selected})
    if unknown := ', '.join(sorted(set(built.readouts) - set(READOUTS))):
        raise ValueError(f'{name} reads out {unknown}: expected features among {", ".join(READOUTS)}')
    return built


def _check_option(option: str, value: Any, hint: Any) -> Any:
    """Check a value by ``isinstance`` against the annotation of its field; one item is a sequence of one."""
    if get_origin(hint) is Sequence:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_check_option(option, item, *get_args(hint)) for item in items)
    kinds = get_args(hint) or (hint,)
    if not all(isinstance(kind, type) for kind in kinds):
        return value  # such as `Literal`, which the protocol checks itself
    fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
    if not fits or (isinstance(value, bool) and bool not in kinds):
        expected = ' or '.join('None' if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f'option {option}: expected {expected}, got {value!r} ({type(value).__name__})')
    return value
