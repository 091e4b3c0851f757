import torch
from mmpretrain.registry import MODELS


def neck(features):
    (vectors,) = MODELS.build(dict(type='GlobalNeck'))(features)
    return vectors


def test_what_is_global():
    tokens, feature_map, vector = torch.randn(2, 5, 6), torch.randn(2, 6, 3, 3), torch.randn(2, 4)
    assert torch.equal(neck((tokens,)), tokens[:, 0])
    torch.testing.assert_close(neck((torch.randn(2, 3, 6, 6), feature_map)), feature_map.mean((2, 3)))
    assert torch.equal(neck((feature_map, vector)), vector)
    assert torch.equal(neck(vector), vector)
