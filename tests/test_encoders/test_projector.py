import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from testing.sop_models import build_sop, sop_config
from torch.nn.functional import normalize, relu

from mm_sop.encoders.checkpoint import WeightsError
from mm_sop.encoders.projector import FrozenProjector, load_projector

NON_LINEAR = dict(type='NonLinearNeck', in_channels=6, hid_channels=8, out_channels=4, num_layers=2)


def features(rows=5, width=6):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('pools', [True, False])
def test_layers_of_a_convolutional_projector(pools):
    neck = MODELS.build(dict(NON_LINEAR, with_avg_pool=pools)).eval()
    taps = FrozenProjector(neck)(features())
    hidden = relu(neck.bn0(neck.fc0(features())))
    assert list(taps) == ['encoding', 'hidden1', 'embedding']
    torch.testing.assert_close(taps['hidden1'], hidden)
    torch.testing.assert_close(taps['embedding'], neck.bn1(neck.fc1(hidden)))


def test_prototypes_are_no_embedding():
    neck = MODELS.build(dict(type='DINONeck', in_channels=6, hid_channels=8, bottleneck_channels=3, num_prototypes=9))
    taps = FrozenProjector(neck)(features())
    assert [each.shape[1] for each in taps.values()] == [6, 8, 8, 3]
    torch.testing.assert_close(taps['embedding'], normalize(neck.projector.layers(features()), dim=1))


def test_the_network_that_is_asked_for(tmp_path):
    model = build_sop().eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    config = Config(dict(model=sop_config()))
    rows = features(width=32)
    for prefix, network in {'teacher.backbone.': model.teacher['neck'], 'backbone.': model.neck}.items():
        projector = load_projector(config, tmp_path / 'model.pth', prefix)
        torch.testing.assert_close(projector(rows)['embedding'], network(rows))


def test_without_projector(tmp_path):
    model = build_sop()
    encoder = {name: value for name, value in model.state_dict().items() if name.startswith('backbone.')}
    torch.save(encoder, tmp_path / 'encoder.pth')
    config = Config(dict(model=sop_config()))
    assert load_projector(config, tmp_path / 'encoder.pth', 'backbone.') is None
    assert load_projector(config, tmp_path / 'encoder.pth', '') is None
    assert load_projector(Config(dict(model=dict(neck=None))), tmp_path / 'encoder.pth', 'backbone.') is None


def test_another_projector_is_refused(tmp_path):
    torch.save(build_sop().state_dict(), tmp_path / 'model.pth')
    config = Config(dict(model=sop_config(neck=dict(type='SOPNeck', in_channels=32, hid_channels=32, out_channels=9))))
    with pytest.raises(WeightsError, match='does not fit SOPNeck'):
        load_projector(config, tmp_path / 'model.pth', 'teacher.backbone.')
