"""Views of all recipes, augmented on the device and on the host."""

import random
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmpretrain.registry import MODELS, TRANSFORMS
from testing.sample_images import smooth_image

DATASETS = Path(__file__).parents[2] / 'configs/_base_/datasets'
RECIPES = sorted(path.name for path in DATASETS.glob('*.py') if "type='FastMultiView'" in path.read_text())


def preprocess(views, config, place):
    """Views of two images as a model receives them, in gray levels."""
    np.random.seed(0)
    random.seed(0)
    make_views, pack = (TRANSFORMS.build(step) for step in (dict(views, augment_on=place), dict(type='PackInputs')))
    samples = []
    for number in range(2):
        image, partner = (dict(img=np.array(smooth_image((250, 200), seed=(number, part)))) for part in range(2))
        samples.append(pack(make_views(dict(image, partner=partner) if 'partner_views' in views else image)))
    preprocessor = MODELS.build(config)
    batch = preprocessor(default_collate(samples), True)
    assert batch.keys() == {'inputs', 'data_samples'}
    return [view * preprocessor.std + preprocessor.mean for view in batch['inputs']]


def compare(views, config):
    on_host, on_device = (preprocess(views, config, place) for place in ('host', 'device'))
    errors = [(ours - theirs).abs() for ours, theirs in zip(on_device, on_host, strict=True)]
    # A draw that is rounded to float32 crosses a gray level, and later operations enlarge the difference.
    assert max(error.max() for error in errors) <= 7
    assert sum(error.mean() for error in errors) / len(errors) <= 0.01


@pytest.mark.parametrize('recipe', RECIPES)
def test_device_and_host_agree(recipe):
    config = Config.fromfile(DATASETS / recipe)
    views = next(step for step in config.train_pipeline if step.type == 'FastMultiView')
    compare(views, config.data_preprocessor)


@pytest.mark.parametrize('partner_views', ['odd', 'last'])
def test_pairs(partner_views):
    config = Config.fromfile(DATASETS / 'imagenet_sop.py')
    views = next(step for step in config.train_pipeline if step.type == 'FastMultiView')
    compare(dict(views, type='PairMultiView', partner_views=partner_views), config.data_preprocessor)
