"""Attention within windows, against a loop over them."""

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from mm_sop.models import MaskedVisionTransformer
from mm_sop.models.backbones import WindowedVisionTransformer
from mm_sop.models.utils.attention import WindowAttention, merge, partition

ARCH = dict(embed_dims=24, num_layers=4, num_heads=3, feedforward_channels=48)


def build(img_size=64, kind=WindowedVisionTransformer, **options):
    backbone = kind(arch=ARCH, img_size=img_size, patch_size=8, **options)
    backbone.init_weights()
    backbone.eval()
    return backbone


def windowed_oracle(query, key, value, grid, side):
    """Every window by itself; the [CLS] outputs are averaged over patches."""
    height, width = grid
    output = torch.zeros_like(query)
    cls = torch.zeros_like(query[:, :, 0])
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows, columns = range(top, min(top + side, height)), range(left, min(left + side, width))
            positions = [0] + [1 + row * width + column for row in rows for column in columns]
            weights = (query[:, :, positions] @ key[:, :, positions].mT / query.shape[-1] ** 0.5).softmax(-1)
            attended = weights @ value[:, :, positions]
            output[:, :, positions[1:]] = attended[:, :, 1:]
            cls += attended[:, :, 0] * (len(positions) - 1) / (height * width)
    output[:, :, 0] = cls
    return output


@pytest.mark.parametrize('grid', [(8, 8), (7, 10), (3, 9), (4, 4)])
def test_window_attention_against_a_loop(grid):
    torch.manual_seed(0)
    tokens = torch.randn(3, 2, 2, 1 + grid[0] * grid[1], 6, dtype=torch.float64).requires_grad_()
    kernel = WindowAttention(4)
    kernel.grid = grid
    output, expected = kernel(*tokens), windowed_oracle(*tokens, grid, 4)
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad((output * weights).sum(), tokens)[0],
        torch.autograd.grad((expected * weights).sum(), tokens)[0],
    )


def test_partition_and_back():
    maps = torch.arange(2 * 3 * 7 * 5 * 2.0).view(2, 3, 7, 5, 2)
    windows = partition(maps, (4, 2))
    assert windows.shape == (2, 6, 3, 8, 2)
    # Second row of windows, third column: one column of three rows is left.
    torch.testing.assert_close(windows[1, 5, 2].view(4, 2, 2)[:3, 0], maps[1, 2, 4:, 4])
    assert windows[1, 5, 2].view(4, 2, 2)[:, 1].abs().sum() == 0
    torch.testing.assert_close(merge(windows, (7, 5), (4, 2)), maps)


def test_equals_the_plain_transformer_where_a_window_covers_the_map():
    plain = build(224, MaskedVisionTransformer, out_type='featmap')
    state = {name: value for name, value in plain.state_dict().items() if name != 'mask_token'}
    images = torch.randn(2, 3, 224, 224)
    for window_size in (28, 30):
        windowed = build(224, window_size=window_size)
        windowed.load_state_dict(state)
        torch.testing.assert_close(windowed(images), plain(images))
    smaller = build(224, window_size=14, global_indices=(3,))
    smaller.load_state_dict(state)
    assert (smaller(images)[0] - plain(images)[0]).abs().max() > 1e-3


def test_window_shields_from_other_windows_and_global_blocks_do_not():
    images = torch.randn(1, 3, 64, 64)
    changed = images.clone()
    changed[..., 32:, 32:] += 1
    for global_indices, reaches in (((3,), True), ((), False)):
        backbone = build(window_size=4, global_indices=global_indices)
        # Without the [CLS] token's way round.
        backbone.windows._merge = lambda windows, batch_size, mask, sides, kernel=backbone.windows: without_cls(
            WindowAttention._merge(kernel, windows, batch_size, mask, sides)
        )
        difference = (backbone(images)[0] - backbone(changed)[0])[..., :4, :4].abs().max()
        assert (difference > 1e-6) == reaches


def without_cls(tokens):
    return torch.cat([torch.zeros_like(tokens[:, :, :1]), tokens[:, :, 1:]], dim=2)


def saved_bytes(backbone, side):
    """Memory that a forward pass keeps for the backward pass."""
    total = 0

    def count(tensor):
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        backbone(torch.randn(1, 3, side, side))
    return total


def test_memory_grows_with_the_area_and_windows_stay_small():
    backbone = WindowedVisionTransformer(arch=ARCH, img_size=1024, patch_size=16, window_size=14, global_indices=(3,))
    seen = []
    split = backbone.windows._split

    def watched(tokens, sides):
        windows = split(tokens, sides)
        seen.append(windows.shape[2])
        return windows

    backbone.windows._split = watched
    small, large = saved_bytes(backbone, 512), saved_bytes(backbone, 1024)
    assert large < 4.5 * small
    assert set(seen) == {1 + 14 * 14}


def test_default_global_blocks_are_spaced_evenly():
    backbone = WindowedVisionTransformer(arch='deit-tiny', window_size=7)
    windowed = [layer.attn.scaled_dot_product_attention is backbone.windows for layer in backbone.layers]
    assert [index for index, value in enumerate(windowed) if not value] == [2, 5, 8, 11]


def test_frozen_blocks_stay_as_they_are():
    backbone = build(window_size=4, stem='conv', frozen_stages=2, drop_path_rate=0.5, global_indices=()).train()
    trained = {name.rsplit('.', 1)[0] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(('patch_embed', 'layers.0', 'layers.1', 'pos_embed')) for name in trained)
    assert any(name.startswith('layers.2') for name in trained)
    assert not any(module.training for module in backbone.patch_embed.modules())
    assert not backbone.layers[1].training and backbone.layers[2].training
    before = {name: value.clone() for name, value in backbone.patch_embed.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    for name, value in backbone.patch_embed.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_every_parameter_gets_a_gradient():
    backbone = build(window_size=4, global_indices=(3,)).train()
    backbone(torch.randn(1, 3, 64, 48))[0].square().sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
@pytest.mark.parametrize('prefix', ['', 'mmdet.', 'mmpretrain.'])
def test_is_found_from_both_scopes(scope, prefix):
    DefaultScope.get_instance(f'{scope}-{prefix}', scope_name=scope)
    backbone = MODELS.build(dict(type=f'{prefix}WindowedVisionTransformer', arch=ARCH, img_size=32, patch_size=8))
    assert isinstance(backbone, WindowedVisionTransformer)


@pytest.mark.parametrize('options', [dict(window_size=0), dict(global_indices=(4,))])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match='window_size must|blocks 0 ... 3'):
        build(**options)
