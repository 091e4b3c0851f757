"""Pyramids of a plain transformer, and the stage of a ResNet that is a detector's head."""

import pytest
import torch
from mmpretrain.registry import MODELS

from mm_sop.models.necks import RescaledMaps, ResNetStage, SimpleFeaturePyramid


def test_levels():
    pyramid = SimpleFeaturePyramid(32, out_channels=16)
    levels = pyramid([torch.randn(2, 8, 3, 5), torch.randn(2, 32, 6, 8)])
    assert [tuple(level.shape) for level in levels] == [
        (2, 16, 24, 32),
        (2, 16, 12, 16),
        (2, 16, 6, 8),
        (2, 16, 3, 4),
        (2, 16, 2, 2),
    ]
    torch.testing.assert_close(levels[4], levels[3][..., ::2, ::2])


def test_one_map_for_all_or_one_for_each():
    rescale = RescaledMaps(8, (4, 1, 0.5))
    maps = [torch.randn(1, 8, 4, 4) for _ in range(3)]
    separate = rescale(maps)
    assert [tuple(map_.shape) for map_ in separate] == [(1, 8, 16, 16), (1, 8, 4, 4), (1, 8, 2, 2)]
    torch.testing.assert_close(separate[1], maps[1])
    torch.testing.assert_close(separate[2], maps[2].unflatten(2, (2, 2)).unflatten(4, (2, 2)).amax((3, 5)))
    torch.testing.assert_close(rescale(maps[:1])[0], separate[0])
    with pytest.raises(ValueError, match='zip'):
        rescale(maps[:2])


def test_rescaling_is_local():
    rescale = RescaledMaps(16, (4,), reduce_channels=True)
    assert rescale.out_channels == [4]
    maps = torch.randn(1, 16, 3, 3)
    changed = maps.clone()
    changed[..., 1, 1] += 1
    touched = (rescale([maps])[0] != rescale([changed])[0]).any(1)[0]
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[4:8, 4:8] = True
    assert torch.equal(touched, expected)


@pytest.mark.parametrize('options', [dict(scales=(3,)), dict(num_outs=2)])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match='expected 4, 2, 1|less than the number'):
        SimpleFeaturePyramid(8, **options)


def test_resnet_stage_continues_the_network():
    network = dict(type='ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8, out_indices=(2, 3))
    whole = MODELS.build(network)
    whole.eval()
    stage = ResNetStage(network).eval()
    stage.load_state_dict({name: value for name, value in whole.state_dict().items() if name.startswith('layer4.')})
    third, fourth = whole(torch.randn(1, 3, 32, 32))
    torch.testing.assert_close(stage(third), fourth)
    assert ResNetStage(network, dict(type='BN')).norm.num_features == 64
