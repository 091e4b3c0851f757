"""Loads frozen encoders, for users and for the evaluation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from PIL import Image
from torch import Tensor, nn

from mm_sop.datasets.transforms.evaluation import EvaluationTransform
from mm_sop.datasets.transforms.loading import to_rgb
from mm_sop.encoders import formats
from mm_sop.encoders.checkpoint import BACKBONE_PREFIXES, Checkpoint, WeightsError, load_backbone, read_checkpoint
from mm_sop.encoders.checkpoint_loader import download
from mm_sop.encoders.safe_config import build_untrusted, check_untrusted, stored_config
from mm_sop.models.utils.readout import Readout, read_out
from mm_sop.utils.channel_order import find_preprocessor, network_order
from mm_sop.utils.config import find_pipeline, load_config, training_dataset, view_size

SPECIFICATION = 'mm_sop.json'
"""File of an export that says what it holds."""


@dataclass
class EncoderSpecification:
    """What an encoder is, JSON-serializable.

    Attributes:
        backbone: Config of the network, or None for those of other libraries.
        mean: Mean of the network's channels, in [0, 255].
        std: Standard deviation of the network's channels, in [0, 255].
        image_size: Side of the square that the network sees, in pixels.
        network: ``'teacher'`` or ``'student'`` where the checkpoint has both, else ``'backbone'``.
        origin: Where the weights come from: ``checkpoint``, ``checkpoint_sha256``, ``source``, the key ``prefix`` and,
            where known, ``method``, ``data``, ``epoch``, ``iter`` and others.
        weights: In an export, the file with the weights.
        format: In an export, the names that they have there, see :data:`mm_sop.encoders.formats.TABLES`.
        channel_order: ``'rgb'`` or ``'bgr'``, which the network takes; :class:`Encoder` converts images.
    """

    backbone: dict | None
    mean: Sequence[float]
    std: Sequence[float]
    image_size: int = 224
    network: str = 'teacher'
    origin: dict = field(default_factory=dict)
    weights: str | None = None
    format: str | None = None
    channel_order: str = 'rgb'

    def dumps(self) -> str:
        """Serialize to JSON."""
        return json.dumps(asdict(self), indent=1)


class Encoder(nn.Module):
    """Frozen network with the preprocessing of its images.

    Call it with PIL images or tensors; the evaluation gives it collated batches of a dataset, see :meth:`encode`.

    Args:
        network: Backbone.
        specification: What it is.
        loaded_as: ``'bgr'`` or ``'rgb'``, the channel order of images in collated batches.

    Attributes:
        transform: Resizes (bicubic) and crops one image, as the evaluation protocols do.
        data_preprocessor: Normalizes collated batches.
        identity: All that features of the network depend on, JSON-serializable.

    Example:
        >>> import torch
        >>> specification = EncoderSpecification(None, mean=(120.0,) * 3, std=(60.0,) * 3, image_size=32)
        >>> encoder = Encoder(torch.nn.Conv2d(3, 8, kernel_size=4, stride=4), specification)
        >>> features, local_map = encoder(torch.rand(2, 3, 32, 32))
        >>> tuple(features.shape), tuple(local_map.shape)
        ((2, 8), (2, 8, 8, 8))
    """

    def __init__(self, network: nn.Module, specification: EncoderSpecification, loaded_as: str = 'bgr') -> None:
        super().__init__()
        self.network, self.specification = network, specification
        self.transform = EvaluationTransform(specification.image_size)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            self._prepare_array = Compose(self.transform.array_steps)
        normalization = dict(mean=list(specification.mean), std=list(specification.std))
        reverses = specification.channel_order != loaded_as
        # A config may have whole numbers.
        numbers = {key: [float(value) for value in values] for key, values in normalization.items()}
        preprocessor = dict(type='mmpretrain.MultiViewDataPreprocessor', to_rgb=reverses, **numbers)
        self.data_preprocessor = MODELS.build(preprocessor)
        self.identity = dict(
            specification.origin,
            architecture=type(network).__name__,
            network=specification.network,
            backbone=specification.backbone,
            to_rgb=reverses,
            feature='pooled output of the backbone',
            normalization=normalization,
        )
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'Encoder':
        """Set the mode; while no parameter requires a gradient, the encoder stays in evaluation mode.

        A model around it would otherwise change statistics of a frozen encoder. ``requires_grad_(True)`` makes the
        encoder trainable.
        """
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def to(self, *args, **kwargs) -> 'Encoder':
        """Move the encoder, including the device that the preprocessor keeps apart from its tensors."""
        self.data_preprocessor.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """Encode a collated batch to ``features``, fp32, (B, D), on the CPU.

        Args:
            batch: ``inputs``, uint8, (B, 3, H, W), and ``data_samples``; those that their meta information calls
                ``unreadable`` get a zero vector.
        """
        features = self.read(batch).global_features
        readable = [not sample.get('unreadable') for sample in batch['data_samples']]
        return dict(features=features.float().cpu() * torch.tensor(readable)[:, None])

    def read(self, batch: dict, num_blocks: int = 1) -> Readout:
        """Read the last blocks or stages for a collated batch, on the network's device; see :func:`read_out`."""
        return read_out(self.network, self.data_preprocessor(batch, False)['inputs'], num_blocks)

    def forward(self, images: Image.Image | Tensor | Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Encode images, see :meth:`prepare`, to global representations, (B, D), and local maps, (B, D', h, w)."""
        readout = read_out(self.network, self.prepare(images))
        return readout.global_features, readout.local_map

    def prepare(self, images: Image.Image | Tensor | Sequence[Image.Image]) -> Tensor:
        """Convert, resize, crop and normalize images.

        Args:
            images: A PIL image or a sequence of them, which are converted as in training, resized and cropped; or a
                tensor, RGB, (3, H, W) or (B, 3, H, W), uint8 or in [0, 1], whose size stays.

        Returns:
            Normalized images on the network's device, (B, 3, H, W).

        Raises:
            ValueError: The images are something else, none, or of another range.
        """
        mean, std = self.data_preprocessor.mean, self.data_preprocessor.std
        if isinstance(images, Image.Image):
            images = [images]
        if not isinstance(images, Tensor):
            # OpenCV's BGR, as in training; the transform gives tensors of the same order.
            arrays = [np.ascontiguousarray(np.asarray(to_rgb(image))[..., ::-1]) for image in _check_images(images)]
            images = torch.stack([self._prepare_array(dict(img=array))['inputs'].flip(0) for array in arrays])
        images = images[None] if images.ndim == 3 else images
        if images.ndim != 4 or images.shape[1] != len(mean) or not images.numel():
            raise ValueError(f'expected images (B, {len(mean)}, H, W), got {tuple(images.shape)}')
        if images.is_floating_point():
            low, high = (float(value) for value in images.aminmax())
            # Resizing overshoots a little.
            if not (low >= -0.5 and high <= 1.5):
                raise ValueError(f'expected a tensor of uint8 or of 0 ... 1, got values of {low:.4g} ... {high:.4g}')
        if self.specification.channel_order == 'bgr':
            images = images.flip(1)
        scale = 255 if images.is_floating_point() else 1
        normalized = (images.to(mean.device, torch.float32) * scale - mean) / std
        return normalized.to(mean.dtype)


def _check_images(images: object) -> Sequence[Image.Image]:
    if not isinstance(images, Sequence) or not images or not all(isinstance(image, Image.Image) for image in images):
        found = type(images).__name__
        if isinstance(images, (list, tuple)):
            found += f' of {" and ".join({type(image).__name__ for image in images}) or "nothing"}'
        raise ValueError(f'expected a PIL image, a list of them or a tensor (B, 3, H, W), got {found}')
    return images


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
            ``tools/export.py``; checkpoint of another library, with ``source``; address of such a file
            (``https://...``); or ``hf:OWNER/NAME``, an export on the Hugging Face hub.
        network: ``'teacher'`` or ``'student'`` where the checkpoint has both. An export has one of them.
        config: Config of the run, for checkpoints that do not hold theirs.
        source: Other origin of the checkpoint: ``'timm:NAME'`` or ``'torchvision:NAME'``, a network of that library;
            ``'timm'``, ``'dinov2'``, ``'ibot'``, ``'torchvision'`` or ``'mmpretrain'``, a ViT or ResNet for a backbone
            of ours, see :func:`mm_sop.encoders.formats.read_format`; or the path of another config.
        image_size: Side to which images are resized. Defaults to that of pretraining; 224 where it is unknown.
        num_heads: Attention heads of networks that are known by their shapes alone.
        trusted: Whether code in the checkpoint may run, and its config may name any Python object. Otherwise only
            classes in the registries of MMEngine, MMPretrain and MMDetection are built from a config that comes with
            the weights.

    Returns:
        The encoder: ``encoder(images)`` gives global representations, (B, D), and local maps, (B, D', h, w).

    Raises:
        ValueError: ``network`` is neither, or ``image_size`` below 1.
        WeightsError: Nothing is there, or it does not hold all of a network that is known.

    Example:
        >>> import mm_sop, torch
        >>> from torchvision.models import resnet18
        >>> torch.save(resnet18().state_dict(), path := getfixture('tmp_path') / 'resnet18.pth')
        >>> encoder = mm_sop.load(path, source='torchvision:resnet18', image_size=64)
        >>> features, local_map = encoder(torch.rand(2, 3, 64, 64))
        >>> tuple(features.shape), tuple(local_map.shape)
        ((2, 512), (2, 512, 2, 2))
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


def build_encoder(
    config: Config,
    checkpoint: str | Path | Checkpoint,
    source: str | None = None,
    network: str = 'teacher',
    prefix: str | None = None,
    loaded_as: str = 'bgr',
) -> Encoder:
    """Build the encoder of a run for images of its data, on the CPU.

    Args:
        config: Config whose training images are encoded; its model is the encoder unless ``source`` is given.
        checkpoint: Weights, see :func:`read_checkpoint`.
        source: Where the encoder comes from, see :func:`load`.
        network: ``'teacher'`` or ``'student'`` where the checkpoint has both.
        prefix: State-dict key prefix. Detected if None.
        loaded_as: ``'bgr'`` or ``'rgb'``, the channel order in which the images will come.

    Raises:
        WeightsError: The architecture is unknown, or the checkpoint does not hold all of it.
    """
    module, specification = _load_network(read_checkpoint(checkpoint), config, source, network, prefix)
    specification.image_size = _image_size(specification.backbone, config)
    specification.origin['source'] = source or Path(config.filename or 'config').name
    return Encoder(module, specification, loaded_as)


def _load_network(
    checkpoint: Checkpoint,
    config: Config | None,
    source: str | None,
    network: str,
    prefix: str | None = None,
    num_heads: int | None = None,
    is_stored: bool = False,
) -> tuple[nn.Module, EncoderSpecification]:
    """Build a network, load all of its weights and describe it; ``is_stored`` marks a config from the checkpoint."""
    path, state = str(checkpoint.path), checkpoint.state_dict(network)
    library, _, name = (source or '').partition(':')
    backbone, channel_order = None, 'rgb'
    normalization: dict[str, Any] = dict(formats.IMAGENET)
    ignored: tuple[str, ...] = ()
    if library in formats.IMPORTS and not name:
        backbone, state = formats.read_format(state, library, network, num_heads, path)
        module, prefix = MODELS.build(backbone), ''
        print_log(f'{path}: the normalization of ImageNet is assumed', logger='current')
    elif library == 'timm':
        module, ignored, normalization = formats.build_timm(name)
    elif library == 'torchvision':
        module, ignored = formats.build_torchvision(name)
    else:
        if source and not Path(source).is_file():
            expected = f'{", ".join(formats.IMPORTS)}, timm:NAME, torchvision:NAME or the config of a run'
            raise WeightsError(
                f'no format or config {source!r}{formats.similar(source, formats.IMPORTS)}: expected {expected}'
            )
        config = load_config(source) if source else config
        if config is None:
            raise WeightsError(f'{path} needs the config of its run')
        backbone, settings = config.model.backbone, find_preprocessor(config)
        module = build_untrusted(MODELS, backbone, path) if is_stored else MODELS.build(backbone)
        normalization = {key: settings.get(key, default) for key, default in formats.IMAGENET.items()}
        channel_order = network_order(config)
    prefix = load_backbone(module, state, path, network, prefix, ignored)
    backbone = backbone and Config(dict(backbone=backbone)).to_dict()['backbone']
    origin = dict(checkpoint=checkpoint.path.name, checkpoint_sha256=checkpoint.sha256, source=source, prefix=prefix)
    colors = dict(normalization, channel_order=channel_order)
    return module, EncoderSpecification(backbone, network=network, origin=origin, **colors)


def _fetch(name: str) -> Path:
    if name.startswith('hf:'):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name.removeprefix('hf:')))
        except (OSError, ValueError) as error:
            raise WeightsError(f'{name} cannot be downloaded: {error}') from error
    if urlparse(name).scheme in ('http', 'https'):
        return download(name)
    if not Path(name).exists():
        expected = 'a file, a folder, an address or hf:OWNER/NAME'
        raise WeightsError(f'no checkpoint {Path(name).absolute()}: expected {expected}')
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
    module = build_untrusted(MODELS, specification.backbone or {}, str(folder))
    weights = folder / str(specification.weights)
    state = formats.from_format(read_checkpoint(weights, trusted).state_dict(), specification.format)
    load_backbone(module, state, str(folder), 'student')
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
        format=specification.format is not None and specification.format not in formats.TABLES,
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


def _is_color(values: Any) -> bool:
    is_list = isinstance(values, (list, tuple)) and len(values) in (1, 3)
    return is_list and all(isinstance(value, (int, float)) for value in values)


def _load_checkpoint(
    path: Path,
    network: str,
    config: str | Path | Config | None,
    source: str | None,
    num_heads: int | None,
    trusted: bool,
) -> Encoder:
    checkpoint = read_checkpoint(path, trusted)
    run = load_config(config) if isinstance(config, (str, Path)) else config
    is_stored = config is None and source is None
    if is_stored:
        run = stored_config(checkpoint.content, str(path), trusted=trusted)
    module, specification = _load_network(checkpoint, run, source, network, None, num_heads, is_stored)
    try:
        specification.image_size = _image_size(specification.backbone, run)
        data = run and (training_dataset(run) or {}).get('data_root')
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f'the config in {path} does not describe the training images: {error!r}') from error
    size, colors = specification.image_size, dict(mean=specification.mean, std=specification.std)
    if not all(map(_is_color, colors.values())) or not _is_size(size):
        raise WeightsError(f'the config in {path} has no such image size and colors: {size}, {colors}')
    specification.origin['source'] = _portable(source)
    if isinstance(meta := checkpoint.content.get('meta'), Mapping):
        specification.origin.update({key: meta[key] for key in ('epoch', 'iter', 'seed', 'time') if key in meta})
    if run is not None:
        specification.origin.update(method=run.model.get('type'), data=_portable(data))
    # The checkpoint says of its networks which is the teacher, or has one alone.
    names = (*checkpoint.content, *checkpoint.state_dict())
    if not any(str(name).split('.')[0] == 'teacher' for name in names):
        specification.network = 'backbone'
    return Encoder(module, specification)


def _portable(path: str | Sequence[str] | None) -> str | None:
    """Return a path, or several, without the folders of this machine."""
    if path is None:
        return None
    paths = [path] if isinstance(path, str) else path
    return ', '.join(Path(each).name if Path(each).is_absolute() else str(each) for each in paths)


def _image_size(backbone: dict | None, config: Config | None) -> int:
    """Side of the images that a backbone, or else the pipeline of its training, is made for."""
    size = (backbone or {}).get('img_size')
    if size is None and config is not None and 'train_dataloader' in config:
        size = view_size(find_pipeline(config))
    return max(size) if isinstance(size, Sequence) else size or 224
