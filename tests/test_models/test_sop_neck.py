import pytest
import torch

from mm_sop.models import SOPNeck


def test_is_the_projector_of_the_released_implementation():
    neck = SOPNeck(384)
    neck.init_weights()
    widths = [(layer.in_features, layer.out_features) for layer in neck.layers if isinstance(layer, torch.nn.Linear)]
    assert widths == [(384, 2048), (2048, 2048), (2048, 256)]
    assert [type(layer).__name__ for layer in neck.layers] == ['Linear', 'GELU', 'Linear', 'GELU', 'Linear']
    assert all(abs(layer.weight.std().item() - 0.02) < 5e-4 for layer in neck.layers[::2])
    assert not any(layer.bias.any() for layer in neck.layers[::2])


def test_gives_unit_rows_token_by_token():
    neck = SOPNeck(8, 16, 4)
    tokens = torch.randn(6, 8)
    embeddings = neck(tokens)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(embeddings[2:3], neck(tokens[2:3]))
    assert neck(tokens[:0]).shape == (0, 4)


def test_normalization_after_hidden_layers_and_output():
    neck = SOPNeck(8, 16, 4, norm_cfg=dict(type='BN1d'), norm_output=True)
    names = ['Linear', 'BatchNorm1d', 'GELU', 'Linear', 'BatchNorm1d', 'GELU', 'Linear', 'BatchNorm1d']
    assert [type(layer).__name__ for layer in neck.layers] == names


def test_is_fp32_under_autocast():
    with torch.autocast('cpu', torch.bfloat16):
        assert SOPNeck(8, 16, 4)(torch.randn(3, 8)).dtype == torch.float32


def test_refuses_settings_that_cannot_work():
    with pytest.raises(ValueError, match='num_layers must be at least 1, got 0'):
        SOPNeck(8, num_layers=0)
    with pytest.raises(ValueError, match='norm_output=True needs norm_cfg'):
        SOPNeck(8, norm_output=True)
