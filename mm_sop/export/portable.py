"""Exports that need no model zoo: safetensors, ONNX, TorchScript."""

import copy
import io
import warnings
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor, nn

from mm_sop.encoders.encoder import Encoder, load
from mm_sop.export.target import Encode, ExportError, Target, read_global_and_local, save_safetensors
from mm_sop.utils.files import write_atomically


class Safetensors(Target):
    """Weights under the names of this project; ``mm_sop.load`` reads the folder."""

    name = 'safetensors'
    package = 'safetensors'

    def write(self, encoder: Encoder, folder: Path) -> None:
        save_safetensors(self.converted(encoder), folder / self.weights)

    def usage(self, encoder: Encoder, folder: Path) -> str:
        return f"import mm_sop\nencoder = mm_sop.load('{folder}')\nfeatures, local_map = encoder(image)"

    def load(self, folder: Path) -> Encode:
        network = load(folder).network
        return lambda images: read_global_and_local(network, images)


class ONNX(Target):
    """A program for ONNX runtimes, for any number of images of the export's size."""

    name = 'onnx'
    package = 'onnxscript'
    weights = 'model.onnx'

    def format(self, network: nn.Module) -> None:
        return None

    def write(self, encoder: Encoder, folder: Path) -> None:
        with warnings.catch_warnings():
            # PyTorch warns about its own functions.
            warnings.simplefilter('ignore', FutureWarning)
            program = torch.onnx.export(
                _Program(encoder.network),
                (_example(encoder),),
                input_names=['images'],
                output_names=['global', 'local_map'],
                dynamic_shapes=dict(images={0: torch.export.Dim('batch', min=1)}),
                dynamo=True,
                verbose=False,
            )
        assert program is not None  # because of `dynamo`
        for node in program.model.graph.all_nodes():
            # Source locations on this machine, half of the file.
            node.metadata_props.clear()
        program.save(folder / self.weights)

    def usage(self, encoder: Encoder, folder: Path) -> str:
        return (
            'import onnxruntime\n'
            f"session = onnxruntime.InferenceSession('{folder}/{self.weights}')\n"
            'features, local_map = session.run(None, dict(images=images.numpy()))'
        )

    def load(self, folder: Path) -> Encode:
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportError('the check of --to onnx needs `pip install onnxruntime`') from error
        session = onnxruntime.InferenceSession(str(folder / self.weights), providers=['CPUExecutionProvider'])

        def encode(images: Tensor) -> tuple[Tensor, Tensor]:
            features, local_map = session.run(None, dict(images=images.numpy()))
            return torch.from_numpy(features), torch.from_numpy(local_map)

        return encode


class TorchScript(Target):
    """A traced program that needs nothing but torch, for any number of images of the export's size."""

    name = 'torchscript'
    weights = 'model.pt'

    def format(self, network: nn.Module) -> None:
        return None

    def write(self, encoder: Encoder, folder: Path) -> None:
        with warnings.catch_warnings():
            # The size of the map becomes a constant, as intended.
            warnings.simplefilter('ignore', torch.jit.TracerWarning)
            program = torch.jit.trace(_Program(encoder.network), _example(encoder), check_trace=False)
        saved, result = io.BytesIO(), io.BytesIO()
        torch.jit.save(program, saved)
        # Without the records of source locations on this machine.
        with ZipFile(saved) as source, ZipFile(result, 'w') as target:
            for record in source.infolist():
                if not record.filename.endswith('.debug_pkl'):
                    target.writestr(record.filename, source.read(record), record.compress_type)
        write_atomically(folder / self.weights, result.getvalue())

    def usage(self, encoder: Encoder, folder: Path) -> str:
        return f"import torch\nmodel = torch.jit.load('{folder}/{self.weights}')\nfeatures, local_map = model(images)"

    def load(self, folder: Path) -> Encode:
        return torch.jit.load(folder / self.weights)


class _Program(nn.Module):
    """The exported program: normalized images to global representations and local maps."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        if hasattr(network, 'out_type'):
            self.network.out_type = 'raw'
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return read_global_and_local(self.network, images)


def _example(encoder: Encoder) -> Tensor:
    # The exporters would treat a batch of 1 as a constant.
    size = encoder.specification.image_size
    return torch.zeros(2, 3, size, size)
