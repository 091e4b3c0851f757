"""Interface of an export target."""

import importlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from mm_sop.encoders.encoder import Encoder
from mm_sop.encoders.formats import to_format
from mm_sop.export.obstacles import find_obstacles
from mm_sop.models.utils.readout import read_out
from mm_sop.utils.failures import UserError
from mm_sop.utils.files import write_atomically

Encode = Callable[[Tensor], tuple[Tensor | None, Tensor]]
"""Forward pass: normalized images, (B, 3, H, W), to global representations (None where a library has none) and maps."""

TARGETS: dict[str, 'Target'] = {}
"""All targets by name."""


class ExportError(UserError, ValueError):
    """The encoder cannot be written; the message says why and what to do."""


class Target(ABC):
    """A library that encoders are exported to.

    Attributes:
        name: Name on the command line.
        package: Module that must be importable.
        installation: Command that installs it. Defaults to pip with the name of the package.
        weights: Name of the file with the weights or the program.
    """

    name: ClassVar[str]
    package: ClassVar[str] = 'torch'
    installation: ClassVar[str] = ''
    weights: ClassVar[str] = 'model.safetensors'

    def __init_subclass__(cls) -> None:
        TARGETS[cls.name] = cls()

    def check(self, encoder: Encoder) -> None:
        """Raise if the library cannot express the encoder or is not installed.

        Raises:
            ExportError: The message names the targets that can express it, or the command that installs the library.
        """
        obstacles = find_obstacles(encoder, self.name)
        if obstacles:
            able = [name for name in TARGETS if not find_obstacles(encoder, name)]
            raise ExportError(f'{self.name} cannot express {" and ".join(obstacles)}; these can: {", ".join(able)}')
        try:
            importlib.import_module(self.package)
        except ImportError as error:
            command = self.installation or f'pip install {self.package}'
            raise ExportError(f'--to {self.name} needs `{command}`') from error

    def format(self, network: nn.Module) -> str | None:
        """Return the naming scheme of the weights, see :data:`mm_sop.encoders.formats.TABLES`; None for programs."""
        return self.name

    @abstractmethod
    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write the files of an encoder into a folder."""

    @abstractmethod
    def load(self, folder: Path) -> Encode:
        """Load an export with the library itself."""

    @abstractmethod
    def usage(self, encoder: Encoder, folder: Path) -> str:
        """Return three lines of Python that load an export."""

    def converted(self, encoder: Encoder) -> dict[str, Tensor]:
        """Rename the weights for the library, without what only pretraining needs."""
        state = {name: value for name, value in encoder.network.state_dict().items() if name != 'mask_token'}
        renamed = to_format(state, self.format(encoder.network) or self.name)
        return {name: value.contiguous() for name, value in renamed.items()}


def read_global_and_local(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute global representations and local maps of normalized images."""
    readout = read_out(network, images)
    return readout.global_features, readout.local_map


def save_tensors(content: dict, path: Path) -> None:
    """Write tensors with :func:`torch.save`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def save_safetensors(state: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file."""
    from safetensors.torch import save

    # The Hugging Face libraries refuse files that do not say so.
    write_atomically(path, save(state, metadata=dict(format='pt')))
