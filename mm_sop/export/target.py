"""What every target of an export does."""

import importlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from mm_sop.engine.atomic import write_atomically
from mm_sop.engine.formats import to_format
from mm_sop.evaluation.loading import Encoder
from mm_sop.export.obstacles import find_obstacles
from mm_sop.models.utils.readout import read_out

Encode = Callable[[Tensor], tuple[Tensor | None, Tensor]]
"""Maps normalised images, (B, 3, H, W), to global representations, or None where a library has none, and local maps."""

TARGETS = {}
"""Targets by name."""


class ExportError(ValueError):
    """The encoder cannot be written; the message says why and what can be done."""


class Target(ABC):
    """A library that takes encoders.

    Attributes:
        name: Name on the command line.
        package: What must be installed.
        installation: Command that installs it. Defaults to pip with the name of the package.
        weights: File with the weights or the program.
    """

    name: ClassVar[str]
    package: ClassVar[str] = 'torch'
    installation: ClassVar[str] = ''
    weights: ClassVar[str] = 'model.safetensors'

    def __init_subclass__(cls) -> None:
        TARGETS[cls.name] = cls()

    def check(self, encoder: Encoder) -> None:
        """Refuse encoders that the library cannot express.

        Args:
            encoder: The encoder.

        Raises:
            ExportError: It cannot, or is not installed; targets that can are named.
        """
        network, image_size = encoder.network, encoder.specification.image_size
        order = encoder.specification.channel_order
        obstacles = find_obstacles(network, image_size, self.name, order)
        if obstacles:
            able = [name for name in TARGETS if not find_obstacles(network, image_size, name, order)]
            raise ExportError(f'{self.name} cannot express {" and ".join(obstacles)}; these can: {", ".join(able)}')
        try:
            importlib.import_module(self.package)
        except ImportError as error:
            command = self.installation or f'pip install {self.package}'
            raise ExportError(f'--to {self.name} needs `{command}`') from error

    def format(self, network: nn.Module) -> str | None:
        """Names of the weights, see :data:`mm_sop.engine.formats.TABLES`; None for programs."""
        return self.name

    @abstractmethod
    def write(self, encoder: Encoder, folder: Path) -> None:
        """Write the files of an encoder.

        Args:
            encoder: The encoder.
            folder: Where to write.
        """

    @abstractmethod
    def load(self, folder: Path) -> Encode:
        """Load an export by means of the library itself."""

    @abstractmethod
    def usage(self, encoder: Encoder, folder: Path) -> str:
        """Three lines of Python that load an export."""

    def converted(self, encoder: Encoder) -> dict[str, Tensor]:
        """Weights by the library's names, without what only pretraining needs."""
        state = {name: value for name, value in encoder.network.state_dict().items() if name != 'mask_token'}
        return {name: value.contiguous() for name, value in to_format(state, self.format(encoder.network)).items()}


def read_global_and_local(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Global representations and local maps of normalised images."""
    readout = read_out(network, images)
    return readout.global_features, readout.local_map


def save_tensors(content: dict, path: Path) -> None:
    """Write a file of PyTorch."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def save_safetensors(state: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file."""
    from safetensors.torch import save

    # The Hugging Face libraries refuse files that do not say so.
    write_atomically(path, save(state, metadata=dict(format='pt')))
