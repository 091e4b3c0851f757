import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from torch.nn.functional import linear

import mm_sop  # noqa: F401
from mm_sop.evaluation.features.attention import cls_attention, find_last_attention, global_similarity
from mm_sop.report.predictions import overlay

ARCH = dict(embed_dims=24, num_layers=3, num_heads=4, feedforward_channels=48)


def build(name='MaskedVisionTransformer'):
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type=name, arch=ARCH, img_size=16, patch_size=4, out_type='raw'))
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    backbone.eval()
    return backbone


@pytest.mark.parametrize('name', ['MaskedVisionTransformer', 'VisionTransformer'])
def test_attention_explains_the_output_of_the_block(name):
    """Weights rebuilt by loops; [CLS] weights times values must equal the output of the module."""
    backbone, images, seen = build(name), torch.randn(2, 3, 16, 16), {}
    module = backbone.layers[-1].attn
    handle = module.register_forward_hook(lambda m, inputs, output: seen.update(inputs=inputs[0], output=output))
    backbone(images)
    handle.remove()
    maps = cls_attention(backbone, images)
    assert maps.shape == (2, 4, 4, 4)
    qkv = module.qkv(seen['inputs']).double()
    for image in range(2):
        gathered = []
        for head in range(4):
            query, keys, values = (qkv[image, :, part * 24 + head * 6 : part * 24 + head * 6 + 6] for part in range(3))
            logits = torch.stack([query[0] @ key / 6**0.5 for key in keys])
            weights = (logits - logits.max()).exp()
            weights = weights / weights.sum()
            torch.testing.assert_close(maps[image, head].flatten().double(), weights[1:], rtol=1e-4, atol=1e-6)
            gathered.append(weights @ values)
        output = linear(torch.cat(gathered).float(), module.proj.weight, module.proj.bias)
        torch.testing.assert_close(output, seen['output'][image, 0], rtol=1e-4, atol=1e-5)


def test_maps_follow_the_shape_of_the_image_and_no_hook_stays():
    backbone = build()
    assert cls_attention(backbone, torch.randn(1, 3, 8, 24)).shape == (1, 4, 2, 6)
    assert not backbone.layers[-1].attn.qkv._forward_hooks


def test_networks_without_attention():
    backbone = MODELS.build(dict(type='ResNet', depth=18, base_channels=4, stem_channels=4))
    assert find_last_attention(backbone) is None
    with pytest.raises(ValueError, match='ResNet has no .CLS. token'):
        cls_attention(backbone, torch.randn(1, 3, 32, 32))


def test_similarity_equals_the_loop():
    whole, positions = torch.randn(2, 5), torch.randn(2, 5, 3, 4)
    maps = global_similarity(whole, positions)
    assert maps.shape == (2, 1, 3, 4)
    for image in range(2):
        for row in range(3):
            for column in range(4):
                vector = positions[image, :, row, column]
                expected = whole[image] @ vector / whole[image].norm() / vector.norm()
                assert float(maps[image, 0, row, column]) == pytest.approx(float(expected), abs=1e-6)


def test_overlay_is_brightest_at_the_largest_weight():
    weights = np.zeros((3, 3))
    weights[2, 0] = 0.7
    bright = overlay(np.full((30, 30, 3), 100, np.uint8), weights).astype(int).sum(2)
    assert bright.shape == (30, 30) and bright[20:, :10].mean() > 1.5 * bright[:20, 10:].mean()
    assert np.unravel_index(bright.argmax(), bright.shape)[0] >= 20
    flat = overlay(np.full((6, 6, 3), 100, np.uint8), np.ones((2, 2)))
    assert (flat == flat[0, 0]).all()
