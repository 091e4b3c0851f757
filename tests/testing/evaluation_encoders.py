"""Small encoders, labeled folders and contexts for tests of evaluation protocols."""

from pathlib import Path

import numpy as np
import torch
from mmpretrain.registry import MODELS
from PIL import Image

from mm_sop.datasets.transforms.evaluation import EvaluationTransform
from mm_sop.encoders.encoder import Encoder, EncoderSpecification
from mm_sop.evaluation.context import EvaluationContext
from mm_sop.evaluation.features.store import FeatureCache

BACKBONES = dict(
    resnet=dict(type='ResNet', depth=18, stem_channels=4, base_channels=4),
    transformer=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32),
        img_size=32,
        patch_size=8,
        out_type='raw',
    ),
)


def make_encoder(kind='resnet', seed=0):
    """A randomly initialized encoder."""
    torch.manual_seed(seed)
    origin = dict(checkpoint=f'{kind}{seed}.pth', checkpoint_sha256=f'{kind}{seed}')
    network = MODELS.build(BACKBONES[kind])
    return Encoder(network, EncoderSpecification(None, (120.0,) * 3, (60.0,) * 3, origin=origin))


def write_classes(folder, per_class, classes=('blue', 'green', 'red'), seed=0):
    """Class folders of noisy images of one color each.

    Args:
        folder: Where to write.
        per_class: Images of a class.
        classes: Names of the classes; the index of a class is that of its bright channel.
        seed: Seed of the noise.
    """
    rng = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        Path(folder, name).mkdir(parents=True)
        for index in range(per_class):
            pixels = rng.integers(0, 160, (32, 40, 3), dtype=np.uint8)
            pixels[..., 2 - label] += 60
            Image.fromarray(pixels).save(Path(folder, name, f'{name}_{seed}_{index}.png'))


def run(protocol, context):
    """Result of a protocol on the data of its context."""
    return protocol.run(context, protocol.find_data(context))


def record_measurements(context, monkeypatch):
    """Dict that gets the result of every :meth:`EvaluationContext.map_images` by the name of the measurement."""
    measured, map_images = {}, context.map_images

    def record(dataset, measure, part):
        measured[part] = map_images(dataset, measure, part)
        return measured[part]

    monkeypatch.setattr(context, 'map_images', record)
    return measured


def make_context(data, work_dir, kind='resnet', dtype='float32', **options):
    """Context of an evaluation with images of 32 pixels."""
    return EvaluationContext(
        encoder=make_encoder(kind),
        data=Path(data),
        work_dir=Path(work_dir),
        cache=FeatureCache(Path(work_dir, 'features'), dtype, shard_size=8),
        transform=EvaluationTransform(32),
        batch_size=4,
        num_workers=0,
        **options,
    )
