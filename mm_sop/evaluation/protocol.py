"""What every evaluation protocol gets, does and gives back.

A protocol is a dataclass in a module of :mod:`mm_sop.evaluation.protocols`, whose fields are its options::

    @PROTOCOLS.register_module('nearest')
    @dataclass
    class NearestProtocol(Protocol):
        readout: str = 'global'

        @property
        def readouts(self):
            return (self.readout,)

        def find_data(self, context):
            folder = context.find('birds', 'class folders with pictures')
            return dict(birds=LabelledImages(folder, pipeline=context.transform.steps))

        def run(self, context, data):
            features = context.features(data['birds'], self.readout)
            accuracy, matrix = ...
            chart = Chart.drawn('confusion', partial(confusion_chart, matrix), 'Confusion of the classes')
            return ProtocolResult(dict(accuracy=Score(accuracy)), pictures=[chart])

All processes call both methods and must come to the same result. Whatever is random is drawn from ``context.seed``.
Long work that is not features goes through :meth:`EvaluationContext.part`, so that it survives an interruption.
The framework keeps the result under a key of everything it depends on, and adds to its card what all protocols share.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import ClassVar, get_args, get_origin, get_type_hints

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.registry import Registry
from torch import Tensor
from torch.utils.data import Dataset

from mm_sop.engine.atomic import write_atomically
from mm_sop.evaluation.cache import READOUTS, FeatureCache
from mm_sop.evaluation.encoders import FrozenEncoder
from mm_sop.evaluation.projector import FrozenProjector
from mm_sop.visualization.page import Chart, Photo

PROTOCOLS = Registry('evaluation protocol', scope='mm_sop', locations=['mm_sop.evaluation.protocols'])
"""All protocols by the name that ``tools/evaluate.py --protocols`` takes."""

INTERPOLATIONS = ('bicubic', 'bilinear', 'lanczos', 'hamming', 'box', 'nearest', 'area')
"""Filters of the resizing: ``'area'`` by OpenCV, the others by Pillow, which smooths when it shrinks."""


class MissingDataError(FileNotFoundError):
    """The data of a protocol are absent; the message says in one line what is expected where."""


@dataclass(frozen=True)
class EvaluationTransform:
    """How pictures are prepared: resized, and cropped in the centre.

    Args:
        crop_size: Side of the square that the encoder sees, in pixels.
        resize_edge: Length of the shorter side before the crop. Defaults to None: 8/7 of the crop, as 256 to 224; crops
            below 160 pixels show the whole shorter side.
        interpolation: Filter of the resizing, one of :data:`INTERPOLATIONS`.

    Raises:
        ValueError: The filter is unknown, or the crop larger than the picture.
    """

    crop_size: int = 224
    resize_edge: int | None = None
    interpolation: str = 'bicubic'

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f'interpolation {self.interpolation!r}: expected one of {", ".join(INTERPOLATIONS)}')
        if self.resize_edge is None:
            edge = self.crop_size if self.crop_size < 160 else round(self.crop_size * 8 / 7)
            object.__setattr__(self, 'resize_edge', edge)
        if not 0 < self.crop_size <= self.resize_edge:
            raise ValueError(f'crop_size={self.crop_size} must lie in [1, resize_edge={self.resize_edge}]')

    @property
    def steps(self) -> list[dict]:
        """Pipeline of a data set whose samples have ``img_path``."""
        return [dict(type='LoadPicture'), *self.array_steps]

    @property
    def array_steps(self) -> list[dict]:
        """Pipeline of a data set whose samples have ``img``, BGR."""
        backend = 'cv2' if self.interpolation == 'area' else 'pillow'
        return [
            dict(type='TrimLongSide'),
            dict(type='ResizeEdge', scale=self.resize_edge, interpolation=self.interpolation, backend=backend),
            dict(type='CenterCrop', crop_size=self.crop_size),
            dict(type='PackInputs'),
        ]


@dataclass
class EvaluationContext:
    """What an evaluation runs with.

    Attributes:
        encoder: The frozen network on its device.
        data: Folder of all data sets.
        work_dir: Folder of results, cache and other files.
        cache: Features on the disk.
        transform: How pictures are prepared.
        seed: Seed of whatever is random.
        batch_size: Pictures encoded at once by one process.
        num_workers: Worker processes that load pictures.
        readouts: What the protocols together read out, see :data:`READOUTS`; one pass serves all.
        projector: What followed the encoder in pretraining, on its device, or None.
        parts: Folder for finished parts of the protocol that runs, or None to keep none.
    """

    encoder: FrozenEncoder
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
        """Network, data and transform, ready for JSON: what tells results apart whose checkpoints share a name."""
        source, network, prefix, weights = (
            self.encoder.identity.get(name) or '' for name in ('source', 'network', 'prefix', 'checkpoint_sha256')
        )
        network = f'{network} ({prefix})' if prefix else network
        return dict(source=source, network=network, weights=weights[:8], data=str(self.data), **asdict(self.transform))

    def features(self, dataset: Dataset, readout: str = 'global') -> Tensor:
        """Features of a data set, from the cache or extracted by all processes together.

        Args:
            dataset: Data set whose pipeline is ``context.transform.steps``.
            readout: One of :data:`READOUTS`.

        Returns:
            Features, (N, D), fp32, on the CPU.
        """
        wanted = dict.fromkeys((*self.readouts, readout))
        loading = dict(batch_size=self.batch_size, num_workers=self.num_workers)
        return self.cache.read(self.encoder, dataset, asdict(self.transform), tuple(wanted), **loading)[readout]

    def part(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """A part of the work of a protocol, done once: an interrupted protocol goes on after its finished parts.

        Args:
            name: Name that is unique within the protocol; may have slashes.
            compute: Gives the arrays of the part. It must not wait for other processes, as they may have theirs.

        Returns:
            What it gives, or has given before the interruption.
        """
        if self.parts is None:
            return dict(compute())
        rank, world_size = get_dist_info()
        path = self.parts / f'{name}_{rank}of{world_size}.npz'
        if not path.is_file():
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **compute())
            write_atomically(path, buffer.getvalue())
        with np.load(path) as arrays:
            return dict(arrays)

    def project(self, encodings: Tensor) -> dict[str, Tensor]:
        """Follow global features through the projector.

        Args:
            encodings: Features of the encoder, (N, D).

        Returns:
            ``encoding`` and, where there is a projector, what :class:`FrozenProjector` gives, on the encoder's device.
        """
        encodings = encodings.to(self.device)
        return dict(encoding=encodings) if self.projector is None else self.projector(encodings)

    def find(self, name: str | Path, expected: str) -> Path:
        """Find a file or folder of the data.

        Args:
            name: Path below :attr:`data`.
            expected: What should be there, for the message.

        Raises:
            MissingDataError: It does not exist.
        """
        path = self.data / name
        if not path.exists():
            raise MissingDataError(f'{path} does not exist: expected {expected}')
        return path


@dataclass(frozen=True)
class Score:
    """One figure of a result.

    Attributes:
        value: The figure; shares and accuracies in [0, 1].
        error: Standard error, or deviation over repeated tries; None if there is none.
        percent: Whether it is shown in per cent.
    """

    value: float
    error: float | None = None
    percent: bool = True


@dataclass
class ProtocolResult:
    """What a protocol found.

    Attributes:
        scores: Figures by name, the most important first.
        card: What only the protocol knows of how they came about (chosen options, lists, number of queries), for JSON.
        pictures: Charts and galleries, with names that are unique within the protocol.
    """

    scores: Mapping[str, Score]
    card: dict = field(default_factory=dict)
    pictures: Sequence[Chart | Photo] = ()


class Protocol(ABC):
    """Base class of all protocols; see the head of this module for how to write one.

    Attributes:
        version: To be raised when a change of the code changes the figures. Kept results count no more then, nor does
            what the protocol itself keeps on the disk, whose key must have it.
        presets: Options by the name that the option ``preset`` takes, as the papers have them.
    """

    version: ClassVar[int] = 1
    presets: ClassVar[Mapping[str, Mapping]] = {}

    @property
    def readouts(self) -> tuple[str, ...]:
        """Which of :data:`READOUTS` are asked of :meth:`EvaluationContext.features`."""
        return ()

    @abstractmethod
    def find_data(self, context: EvaluationContext) -> dict[str, Dataset | Path]:
        """Find the data, without encoding anything.

        Args:
            context: What the evaluation runs with.

        Returns:
            Data sets, or files and folders, by name. The result is kept under a key of their names and content.

        Raises:
            MissingDataError: They are absent; the protocol is then listed as skipped.
        """

    def find_lists(self, context: EvaluationContext) -> dict[str, Path]:
        """Find files that decide the figures beside the data, such as lists of pictures.

        Args:
            context: What the evaluation runs with.

        Returns:
            Files that exist, by name. Their content is part of the result's key.
        """
        return {}

    @abstractmethod
    def run(self, context: EvaluationContext, data: dict) -> ProtocolResult:
        """Evaluate.

        Args:
            context: What the evaluation runs with.
            data: What :meth:`find_data` returned.

        Returns:
            Scores, card and pictures.
        """


def protocol_names() -> list[str]:
    """Names of all protocols."""
    PROTOCOLS.import_from_location()
    return list(PROTOCOLS.module_dict)


def build_protocol(name: str, options: Mapping | None = None) -> Protocol:
    """Build a protocol by its name.

    Args:
        name: Registered name.
        options: Values of its fields; ``preset`` names one of its presets, which the others change.

    Raises:
        ValueError: Name, preset or option is unknown, or a value of the wrong type.
    """
    if name not in protocol_names():
        raise ValueError(f'no protocol {name!r}: choose among {", ".join(protocol_names())}')
    protocol = PROTOCOLS.get(name)
    options = dict(options or {})
    preset = options.pop('preset', None)
    if preset is not None and preset not in protocol.presets:
        known = ', '.join(protocol.presets) or 'none'
        raise ValueError(f'protocol {name} has no preset {preset!r}: its presets are {known}')
    unknown = set(options) - set(protocol.__dataclass_fields__)
    if unknown:
        known = ', '.join(protocol.__dataclass_fields__)
        raise ValueError(f'protocol {name} has no option {", ".join(sorted(unknown))}: its options are {known}')
    hints = get_type_hints(protocol)
    chosen = {option: _fit(f'{name}.{option}', value, hints[option]) for option, value in options.items()}
    built = protocol(**{**protocol.presets.get(preset, {}), **chosen})
    unknown = set(built.readouts) - set(READOUTS)
    if unknown:
        raise ValueError(
            f'{name} reads out {", ".join(sorted(unknown))}: expected features among {", ".join(READOUTS)}'
        )
    return built


def _fit(option: str, value, hint):
    """Check a value against the annotation of its field, a class, a union or a sequence; one item is a sequence of one.

    Other annotations are the protocol's own affair.
    """
    if get_origin(hint) is Sequence:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_fit(option, item, *get_args(hint)) for item in items)
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if not all(isinstance(kind, type) for kind in kinds):
        return value
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        expected = ' or '.join('None' if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f'option {option}: expected {expected}, got {value!r} ({type(value).__name__})')
    return value
