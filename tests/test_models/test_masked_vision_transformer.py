import pytest
import torch
from mmpretrain.models import VisionTransformer

from mm_sop.models import MaskedVisionTransformer
from mm_sop.models.utils.attention import attend

ARCH = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
OPTIONS = dict(arch=ARCH, img_size=16, patch_size=4)


@pytest.fixture
def model():
    model = MaskedVisionTransformer(**OPTIONS)
    model.init_weights()
    torch.nn.init.normal_(model.mask_token)
    model.eval()
    return model


def test_equals_the_plain_transformer_without_a_mask(model):
    plain = VisionTransformer(**OPTIONS, out_type='raw')
    plain.eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images)[0], plain(images)[0])


def test_masked_patches_are_replaced_before_the_position_embedding(model):
    images = torch.randn(2, 3, 16, 16)
    mask = torch.rand(2, 4, 4) < 0.5
    changed = images.clone()
    for image, row, column in mask.nonzero().tolist():
        changed[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 7.0
    torch.testing.assert_close(model(images, mask)[0], model(changed, mask)[0])
    assert not torch.allclose(model(images, mask)[0], model(images)[0])

    tokens, _ = model.patch_embed(images)
    for image, position in mask.flatten(1).nonzero().tolist():
        tokens[image, position] = model.mask_token[0, 0]
    tokens = torch.cat([model.cls_token.expand(2, -1, -1), tokens], 1) + model.pos_embed
    for layer in model.layers:
        tokens = layer(tokens)
    torch.testing.assert_close(model(images, mask)[0], model.ln1(tokens))


def test_an_empty_mask_changes_nothing_and_still_gives_the_mask_embedding_a_gradient(model):
    images = torch.randn(2, 3, 16, 16)
    output = model(images, torch.zeros(2, 16, dtype=torch.bool))[0]
    torch.testing.assert_close(output, model(images)[0])
    output.sum().backward()
    assert torch.equal(model.mask_token.grad, torch.zeros_like(model.mask_token))


def test_initial_weights_are_those_of_ibot():
    model = MaskedVisionTransformer(arch='deit-small')
    convolution = model.patch_embed.projection.weight.clone()
    model.init_weights()
    linear = [module for module in model.layers.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) == 12 * 4
    for module in linear:
        assert abs(module.weight.std().item() - 0.02) < 5e-4
        assert module.weight.abs().max() > 0.06, 'truncated at +-2, which is 100 deviations'
        assert not module.bias.any()
    for embedding in (model.cls_token, model.pos_embed):
        assert abs(embedding.std().item() - 0.02) < 2e-3
    assert not model.mask_token.any()
    assert torch.equal(model.patch_embed.projection.weight, convolution)
    assert model.ln1.eps == 1e-6


def test_any_crop_size_and_dinos_scale_for_the_position_embedding(model):
    model.pos_embed.data.normal_()
    assert model(torch.randn(1, 3, 8, 12))[0].shape == (1, 1 + 6, 32)
    grid = model.pos_embed[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, scale_factor=(2.1 / 4, 3.1 / 4), mode='bicubic')
    torch.testing.assert_close(model._position_embedding((2, 3))[:, 1:], expected.flatten(2).transpose(1, 2))
    exact = MaskedVisionTransformer(**OPTIONS, interpolate_offset=0)
    exact.pos_embed.data.copy_(model.pos_embed)
    expected = torch.nn.functional.interpolate(grid, size=(2, 3), mode='bicubic')
    torch.testing.assert_close(exact._position_embedding((2, 3))[:, 1:], expected.flatten(2).transpose(1, 2))


def test_convolutional_stem_has_the_same_grid():
    model = MaskedVisionTransformer(**OPTIONS, stem='conv')
    assert model(torch.randn(2, 3, 16, 16))[0].shape == (2, 17, 32)
    assert model(torch.randn(2, 3, 8, 8))[0].shape == (2, 5, 32)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(stem='deep'), "stem must be 'patch' or 'conv', got 'deep'"),
        (dict(stem='conv', patch_size=6, img_size=24), 'power of 2, got 6'),
        (dict(with_cls_token=False), r'needs its \[CLS\] token'),
    ],
)
def test_refuses_settings_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedVisionTransformer(**{**OPTIONS, **options})


def test_attention_in_bf16_is_that_of_fp32():
    query, key, value = (torch.randn(2, 3, 5, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    output = attend(query, key, value)
    assert output.dtype == torch.bfloat16
    weights = (query.float() @ key.float().mT / 8**0.5).softmax(-1)
    torch.testing.assert_close(output, (weights @ value.float()).to(torch.bfloat16), rtol=1e-2, atol=1e-2)
    output.sum().backward()
    expected = weights.sum(2).to(torch.bfloat16)
    torch.testing.assert_close(value.grad[..., 0], expected, rtol=2e-2, atol=2e-2)
