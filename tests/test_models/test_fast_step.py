"""Layers and passes that save time equal the plain ones."""

import copy

import pytest
import torch
from mmpretrain.models.utils import MultiheadAttention
from mmpretrain.registry import MODELS
from testing.sop_models import batch, build_sop, objective, sop_config
from torch import nn
from torch.nn.functional import linear

from mm_sop.engine.runner import compile_blocks
from mm_sop.models.backbones import MaskedVisionTransformer
from mm_sop.models.utils.attention import UnboundAttention
from mm_sop.models.utils.conv_stem import ConvStem
from mm_sop.models.utils.cpu_layers import TrainingHiddenLayer, TrainingLinear


def gradients(module, inputs):
    """Output, and gradients of the input and the parameters."""
    inputs = inputs.clone().requires_grad_()
    output = module(inputs)
    return output, torch.autograd.grad(output.square().sum(), [inputs, *module.parameters()])


def assert_as_in_double_precision(module, inputs):
    (output, grads), (expected, expected_grads) = (
        gradients(module, inputs),
        gradients(copy.deepcopy(module).double(), inputs.double()),
    )
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('bias', [True, False])
def test_linear_layer(bias):
    torch.manual_seed(0)
    layer, inputs = TrainingLinear(6, 4, bias=bias), torch.randn(3, 5, 6)
    assert_as_in_double_precision(layer, inputs)
    # Also of inputs that are not contiguous, and with gradients of some arguments only
    assert_as_in_double_precision(layer, inputs.transpose(0, 1))
    layer.weight.requires_grad_(False)
    output = layer(inputs)
    torch.testing.assert_close(output, linear(inputs, layer.weight, layer.bias))
    assert output.requires_grad == bias
    layer.eval()
    assert torch.equal(layer(inputs), linear(inputs, layer.weight, layer.bias))
    with torch.autocast('cpu', torch.bfloat16):
        assert layer.train()(inputs).dtype == torch.bfloat16


@pytest.mark.parametrize('activation', [nn.GELU(), nn.GELU(approximate='tanh'), nn.ReLU()])
def test_hidden_layer(activation):
    torch.manual_seed(0)
    layer, inputs = TrainingHiddenLayer(nn.Linear(6, 4), activation, nn.Dropout(0.0)), torch.randn(3, 5, 6)
    expected = activation(layer[0](inputs))
    with torch.no_grad():
        torch.testing.assert_close(layer(inputs), expected)
        assert torch.equal(layer.eval()(inputs), expected)
    assert torch.equal(layer.train()(inputs), expected)


def test_attention_is_that_of_mmpretrain_to_the_last_bit():
    torch.manual_seed(0)
    plain = MultiheadAttention(16, 2, layer_scale_init_value=0.1)
    fast, tokens = copy.deepcopy(plain), torch.randn(3, 5, 16)
    fast.__class__ = UnboundAttention
    (expected, expected_grads), (output, grads) = gradients(plain, tokens), gradients(fast, tokens)
    assert torch.equal(output, expected)
    assert all(torch.equal(grad, expected_grad) for grad, expected_grad in zip(grads, expected_grads, strict=True))
    positions = torch.tensor([0, 7, 14, 7])
    torch.testing.assert_close(fast(tokens, positions), expected.flatten(0, 1)[positions])


def test_convolutional_stem():
    torch.manual_seed(0)
    stem, images = ConvStem(3, 16, 4, (4, 4)), torch.randn(2, 3, 16, 16)

    class Tokens(nn.Module):
        def __init__(self, stem):
            super().__init__()
            self.stem = stem

        def forward(self, images):
            return self.stem(images)[0]

    assert_as_in_double_precision(Tokens(stem), images)


@pytest.mark.parametrize('drop_path_rate', [0.0, 0.5])
@pytest.mark.parametrize('key_views', [(1,), (0, 1)])
def test_selected_tokens_give_the_losses_and_gradients_of_all_tokens(monkeypatch, drop_path_rate, key_views):
    backbone = dict(sop_config()['backbone'], drop_path_rate=drop_path_rate)
    results = []
    for selects in (True, False):
        monkeypatch.setattr(MaskedVisionTransformer, 'selects_tokens', selects)
        model = build_sop(backbone=backbone, key_views=key_views).double()
        torch.manual_seed(1)
        views, samples = batch()
        losses = model.loss([view.double() for view in views], samples)
        objective(losses).backward()
        results.append((losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    for first, second in zip(*results, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            torch.testing.assert_close(value, second[name], msg=name)


def test_returns_the_selected_tokens():
    backbone = MODELS.build(sop_config()['backbone'])
    images, positions = torch.randn(2, 3, 16, 16), torch.tensor([0, 33, 17, 5])
    assert backbone.selects_tokens
    torch.testing.assert_close(backbone(images, positions=positions)[-1], backbone(images)[-1].flatten(0, 1)[positions])
    config = dict(sop_config()['backbone'], out_indices=(0, 1))
    assert not MODELS.build(config).selects_tokens


@pytest.mark.parametrize('drop_path_rate', [0.0, 0.5])
def test_blocks_compile_as_a_whole_and_once_for_any_number_of_tokens(drop_path_rate):
    config = sop_config()['backbone']
    model = nn.ModuleDict(dict(backbone=MODELS.build(dict(config, drop_path_rate=drop_path_rate, out_type='raw'))))
    compile_blocks(model, dict(backend='eager', fullgraph=True))
    images = torch.zeros(2, 3, 16, 16)
    model.backbone(images, positions=torch.arange(5))
    with torch.compiler.set_stance('fail_on_recompile'):
        for count in (9, 14):
            assert len(model.backbone(images, positions=torch.arange(count))[-1]) == count
