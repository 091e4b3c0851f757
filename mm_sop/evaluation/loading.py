"""One line from a checkpoint to a ready encoder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from PIL import Image
from torch import Tensor, nn

from mm_sop.datasets.transforms.loading import to_rgb
from mm_sop.engine.checkpoint_loader import download
from mm_sop.engine.formats import TABLES, from_format
from mm_sop.engine.launch import load_config, training_dataset
from mm_sop.engine.safe_config import build_untrusted, check_untrusted
from mm_sop.engine.stored_config import stored_config
from mm_sop.engine.weights import (
    BACKBONE_PREFIXES,
    WeightsError,
    find_prefix,
    find_state_dict,
    load_complete,
    read_checkpoint,
    read_state_dict,
    strip_prefix,
)
from mm_sop.evaluation.encoders import hash_file, load_network
from mm_sop.evaluation.mining import find_pipeline, view_size
from mm_sop.evaluation.protocol import EvaluationTransform
from mm_sop.models.utils.readout import read_out

SPECIFICATION = 'mm_sop.json'
"""File of an export that says what it holds."""


@dataclass
class EncoderSpecification:
    """What an encoder is, ready for JSON.

    Attributes:
        backbone: Config of the network, or None for those of other libraries.
        mean: Mean of the network's channels, of 0 ... 255.
        std: Standard deviation.
        image_size: Side of the square that the network sees, in pixels.
        network: ``'teacher'`` or ``'student'`` where the checkpoint has both, else ``'backbone'``.
        origin: Where the weights come from: ``checkpoint``, its ``checkpoint_sha256``, the ``prefix`` of their names
            and, where known, ``method``, ``data``, ``epoch``, ``iter`` and others.
        weights: In an export, the file with the weights.
        format: In an export, the names that they have there, see :data:`mm_sop.engine.formats.TABLES`.
        channel_order: ``'rgb'`` or ``'bgr'``, which the network takes; pictures are given as RGB in any case.
    """

    backbone: dict | None
    mean: Sequence[float]
    std: Sequence[float]
    image_size: int
    network: str = 'teacher'
    origin: dict = field(default_factory=dict)
    weights: str | None = None
    format: str | None = None
    channel_order: str = 'rgb'

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1)


class Encoder(nn.Module):
    """Network with the preparation of its pictures, in evaluation mode.

    Args:
        network: Backbone.
        specification: What it is.

    Attributes:
        transform: Resizes (bicubic) and crops one picture, as the evaluation protocols do.
    """

    def __init__(self, network: nn.Module, specification: EncoderSpecification) -> None:
        super().__init__()
        self.network = network
        self.specification = specification
        self.transform = EvaluationTransform(specification.image_size)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            self._prepare_array = Compose(self.transform.array_steps)
        for name in ('mean', 'std'):
            # A config may have whole numbers.
            values = torch.tensor(getattr(specification, name), dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'Encoder':
        """Set the mode; while no parameter requires a gradient, it stays that of evaluation.

        Statistics of a frozen encoder would else change inside a model that is trained. ``requires_grad_(True)`` makes
        the encoder trainable.
        """
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def forward(self, images: Image.Image | Tensor | Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Encode pictures.

        Args:
            images: See :meth:`prepare`.

        Returns:
            Global representation, (B, D), and local map, (B, D', h, w).
        """
        readout = read_out(self.network, self.prepare(images))
        return readout.global_features, readout.local_map

    def prepare(self, images: Image.Image | Tensor | Sequence[Image.Image]) -> Tensor:
        """Bring pictures into the form that the network takes.

        Args:
            images: A PIL picture or several, which are converted as in training, resized and cropped; or a tensor, RGB,
                (3, H, W) or (B, 3, H, W), uint8 or of 0 ... 1, whose size stays.

        Returns:
            Normalised images on the network's device, (B, 3, H, W).

        Raises:
            ValueError: The pictures are something else, none, or of another range.
        """
        if isinstance(images, Image.Image):
            images = [images]
        if not isinstance(images, Tensor):
            images = torch.stack([self._from_pil(image) for image in _check_pictures(images)])
        images = images[None] if images.ndim == 3 else images
        if images.ndim != 4 or images.shape[1] != self.mean.shape[1] or not images.numel():
            raise ValueError(f'expected images (B, {self.mean.shape[1]}, H, W), got {tuple(images.shape)}')
        if images.is_floating_point():
            _check_range(images)
        if self.specification.channel_order == 'bgr':
            images = images.flip(1)
        scale = 255 if images.is_floating_point() else 1
        normalized = (images.to(self.mean.device, torch.float32) * scale - self.mean) / self.std
        return normalized.to(self.mean.dtype)

    def _from_pil(self, image: Image.Image) -> Tensor:
        bgr = np.ascontiguousarray(np.asarray(to_rgb(image))[..., ::-1])
        return self._prepare_array(dict(img=bgr))['inputs'].flip(0)


def _check_pictures(images: object) -> Sequence[Image.Image]:
    if not isinstance(images, Sequence) or not images or not all(isinstance(image, Image.Image) for image in images):
        found = type(images).__name__
        if isinstance(images, (list, tuple)):
            found += f' of {" and ".join({type(image).__name__ for image in images}) or "nothing"}'
        raise ValueError(f'expected a PIL picture, a list of them or a tensor (B, 3, H, W), got {found}')
    return images


def _check_range(images: Tensor) -> None:
    low, high = (float(value) for value in images.aminmax())
    # Resizing overshoots a little.
    if not (low >= -0.5 and high <= 1.5):
        raise ValueError(f'expected a tensor of uint8 or of 0 ... 1, got values of {low:.4g} ... {high:.4g}')


def load(
    path_or_name: str | Path,
    network: str = 'teacher',
    config: str | Path | Config | None = None,
    source: str | None = None,
    image_size: int | None = None,
    num_heads: int | None = None,
    trusted: bool = False,
) -> Encoder:
    """Load an encoder with its transform.

    Args:
        path_or_name: Checkpoint of a run, which says itself what network it holds; folder written by
            ``tools/export.py``; checkpoint of another library, with ``source``; address of such a file (``https://...``);
            or ``hf:OWNER/NAME``, an export on the Hugging Face hub.
        network: ``'teacher'`` or ``'student'`` where the checkpoint has both. An export has one of them.
        config: Config of the run, for checkpoints that do not hold theirs.
        source: Other origin of the checkpoint, see :func:`mm_sop.evaluation.encoders.load_network`.
        image_size: Side that pictures get. Defaults to that of pretraining; 224 where it is unknown.
        num_heads: Attention heads of networks that are known by their shapes alone.
        trusted: Whether code in the checkpoint may run, and its config may name any Python object. Without, only
            classes in the registries of MMEngine, MMPretrain and MMDetection are built from a config that comes with
            the weights.

    Returns:
        The encoder: ``encoder(images)`` gives global representations, (B, D), and local maps, (B, D', h, w).

    Raises:
        ValueError: ``network`` is neither, or ``image_size`` below 1.
        WeightsError: Nothing is there, or it does not hold all of a network that is known.
    """
    if network not in BACKBONE_PREFIXES:
        raise ValueError(f'load(network={network!r}): expected one of {", ".join(BACKBONE_PREFIXES)}')
    if image_size is not None and image_size < 1:
        raise ValueError(f'load(image_size={image_size}): expected at least 1')
    path = _fetch(str(path_or_name))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        if path.is_dir():
            encoder = _load_export(path, network, trusted)
        else:
            encoder = _load_checkpoint(path, network, config, source, num_heads, trusted)
    if image_size is None or image_size == encoder.specification.image_size:
        return encoder
    encoder.specification.image_size = image_size
    return Encoder(encoder.network, encoder.specification)


def _fetch(name: str) -> Path:
    if name.startswith('hf:'):
        try:
            from huggingface_hub import snapshot_download
        except ImportError as error:
            raise WeightsError(f'{name} needs `pip install huggingface_hub`') from error
        try:
            return Path(snapshot_download(name.removeprefix('hf:')))
        except (OSError, ValueError) as error:
            raise WeightsError(f'{name} cannot be downloaded: {error}') from error
    if urlparse(name).scheme in ('http', 'https'):
        return download(name)
    if not Path(name).exists():
        raise WeightsError(
            f'no checkpoint {Path(name).absolute()}: expected a file, a folder, an address or hf:OWNER/NAME'
        )
    return Path(name)


def _load_export(folder: Path, network: str, trusted: bool) -> Encoder:
    if not (folder / SPECIFICATION).is_file():
        raise WeightsError(f'{folder} has no {SPECIFICATION}: expected a folder written by tools/export.py')
    specification = _read_specification(folder / SPECIFICATION)
    if specification.format is None:
        raise WeightsError(f'{folder} holds a program, not weights: load {specification.weights} with its own runtime')
    if specification.network == 'teacher' and network == 'student':
        raise WeightsError(f'{folder} holds the teacher: export the checkpoint again with `--which student`')
    if not trusted:
        specification.backbone = check_untrusted(specification.backbone, str(folder), place='backbone')
    module = build_untrusted(MODELS, specification.backbone, str(folder))
    state = from_format(read_state_dict(folder / specification.weights, trusted=trusted), specification.format)
    prefix = find_prefix(state, module.state_dict(), ('backbone.', ''), str(folder), ('mask_token',))
    load_complete(module, strip_prefix(state, prefix), str(folder), ('mask_token',))
    return Encoder(module, specification)


def _read_specification(path: Path) -> EncoderSpecification:
    """Read the description of an export, which may come from anywhere."""
    try:
        specification = EncoderSpecification(**json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f'{path} is damaged: {error}') from error
    size, name = specification.image_size, specification.weights
    faults = dict(
        image_size=not _is_size(size),
        mean=not _is_color(specification.mean),
        std=not _is_color(specification.std),
        format=specification.format is not None and specification.format not in TABLES,
        # A path could lead out of the folder.
        weights=not isinstance(name, str) or Path(name).name != name,
        origin=not isinstance(specification.origin, dict),
    )
    wrong = [f'{key} = {getattr(specification, key)!r}' for key, is_wrong in faults.items() if is_wrong]
    if wrong:
        raise WeightsError(f'{path} is damaged or of another version: {", ".join(wrong)}')
    return specification


def _is_size(size: object) -> bool:
    return isinstance(size, int) and 0 < size <= 2**14


def _is_color(values: object) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, (int, float)) for value in values)


def _load_checkpoint(
    path: Path,
    network: str,
    config: str | Path | Config | None,
    source: str | None,
    num_heads: int | None,
    trusted: bool,
) -> Encoder:
    content = read_checkpoint(path, trusted)
    if isinstance(config, (str, Path)):
        config = load_config(config)
    is_stored = config is None and source is None
    if is_stored:
        config = stored_config(content, str(path), trusted=trusted)
    loaded = load_network(path, config, source, network, None, num_heads, content, is_stored)
    try:
        size, data = _image_size(loaded.backbone, config), config and (training_dataset(config) or {}).get('data_root')
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f'the config in {path} does not describe the training images: {error!r}') from error
    if not all(map(_is_color, loaded.normalization.values())) or not _is_size(size):
        raise WeightsError(f'the config in {path} has no such image size and colors: {size}, {loaded.normalization}')
    meta = content.get('meta') or {}
    origin = dict(
        checkpoint=path.name, checkpoint_sha256=hash_file(path), source=_portable(source), prefix=loaded.prefix
    )
    origin.update({key: meta[key] for key in ('epoch', 'iter', 'seed', 'time') if key in meta})
    if config is not None:
        origin.update(method=config.model.get('type'), data=_portable(data))
    specification = EncoderSpecification(
        loaded.backbone and Config(dict(backbone=loaded.backbone)).to_dict()['backbone'],
        **loaded.normalization,
        image_size=size,
        network=network if _has_teacher(content, str(path)) else 'backbone',
        origin=origin,
        channel_order=loaded.channel_order,
    )
    return Encoder(loaded.module, specification)


def _has_teacher(content: Mapping, source: str) -> bool:
    """Whether a checkpoint says of its networks which is the teacher."""
    return any(str(name).split('.')[0] == 'teacher' for name in (*content, *find_state_dict(content, source)))


def _portable(path: str | Sequence[str] | None) -> str | None:
    """A path, or several, without the folders of this machine."""
    if isinstance(path, (list, tuple)):
        return ', '.join(_portable(str(each)) for each in path)
    return Path(path).name if path and Path(path).is_absolute() else path


def _image_size(backbone: dict | None, config: Config | None) -> int:
    size = (backbone or {}).get('img_size')
    if size is None and config is not None and 'train_dataloader' in config:
        size = view_size(find_pipeline(config))
    return max(size) if isinstance(size, Sequence) else size or 224
