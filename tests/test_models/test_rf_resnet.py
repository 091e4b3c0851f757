import pytest
import torch
from mmpretrain.registry import MODELS
from torch import nn

from mm_sop.functional import receptive_field
from mm_sop.models.backbones.rf_resnet import ARCHITECTURES, RFResNet
from mm_sop.models.utils.tokens import split_features

# Parameters of the trunk and with the MLP, and the side of the map at 224 pixels (rf29_r18: 64).
PRESETS = dict(
    rf99_even=(14_824_512, 23_221_312, 7),
    rf99_prefix=(14.1e6, 22.5e6, 7),
    rf99_bag=(14.6e6, 23.0e6, 14),
    rf99_param_match=(15.3e6, 23.75e6, 28),
    rf33_bag=(None, None, 28),
    rf29_r18=(2.26e6, 2.78e6, 8),
)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_presets_have_their_field_parameters_and_map(arch):
    trunk, whole, side = PRESETS[arch]
    network = RFResNet(arch).eval()
    assert network.receptive_field == ARCHITECTURES[arch]['receptive_field']
    if trunk is not None:
        tolerance = 0 if isinstance(trunk, int) else 0.005
        assert count(network) == pytest.approx(whole, rel=tolerance)
        assert count(network) - count(network.mlp) == pytest.approx(trunk, rel=tolerance)
    with torch.no_grad():
        feature_map, vector = network(torch.randn(1, 3, *[64 if arch == 'rf29_r18' else 224] * 2))
    assert feature_map.shape[2:] == (side, side)
    assert vector.shape == feature_map.shape[:2]


@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_input_gradient_of_a_cell_has_exactly_the_declared_support(arch):
    network = RFResNet(arch, base_channels=4, stem_channels=4, mlp=None).eval()
    network.maxpool = nn.AvgPool2d(3, 2, 1) if isinstance(network.maxpool, nn.MaxPool2d) else network.maxpool
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    image = torch.ones(1, 3, 224, 224, requires_grad=True)
    feature_map = network(image)[-1]
    middle = feature_map.shape[-1] // 2
    feature_map[0, :, middle, middle].sum().backward()
    touched = image.grad[0].sum(0).nonzero()
    extent = touched.max(0).values - touched.min(0).values + 1
    assert extent.tolist() == [network.receptive_field] * 2


@pytest.mark.parametrize(
    ('kept', 'style', 'expected'),
    [
        ((0, 0, 0, 0), 'pytorch', 11), ((1, 0, 0, 0), 'pytorch', 19), ((3, 0, 0, 0), 'pytorch', 35),
        ((3, 2, 0, 0), 'pytorch', 59), ((3, 4, 1, 0), 'pytorch', 107), ((3, 4, 2, 0), 'pytorch', 139),
        ((3, 4, 4, 0), 'pytorch', 203), ((3, 4, 6, 3), 'pytorch', 427), ((3, 4, 6, 3), 'caffe', 483),
        ((3, 1, 0, 0), 'caffe', 51), ((3, 4, 6, 0), 'caffe', 291),
    ],
)  # fmt: skip
def test_ladder_of_resnet50(kept, style, expected):
    arch = dict(depth=50, kept=kept, style=style)
    # With few cells kept the field is smaller than the jump of 32.
    with pytest.warns(UserWarning) if expected < 32 else torch.no_grad():
        assert RFResNet(arch, base_channels=4, mlp=None).receptive_field == expected


@pytest.mark.parametrize(
    ('kept', 'expected'),
    [((0, 0, 0, 0), 3), ((2, 0, 0, 0), 7), ((4, 1, 0, 0), 13), ((4, 4, 2, 0), 37), ((4, 4, 4, 4), 109)],
)
def test_ladder_of_resnet18_counts_convolutions(kept, expected):
    arch = dict(depth=18, kept=kept, stem='small')
    with pytest.warns(UserWarning) if expected < 8 else torch.no_grad():
        assert RFResNet(arch, base_channels=4, mlp=None).receptive_field == expected


def test_everything_kept_is_the_stock_network():
    stock = MODELS.build(dict(type='ResNet', depth=50))
    stock.eval()
    ours = RFResNet(dict(depth=50, kept=(3, 4, 6, 3)), mlp=None).eval()
    assert count(ours) == 23_508_032
    ours.load_state_dict(stock.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours(images)[0], stock(images)[0])
    assert receptive_field(stock).size == 427
    assert receptive_field(MODELS.build(dict(type='ResNet', depth=18))).size == 435


def test_masks_choose_single_convolutions():
    every_other = [[True, False, True], [True, False, True, False], [1, 0, 1, 0, 1, 0], [1, 0, 1]]
    network = RFResNet(dict(depth=50, kept=every_other), base_channels=4)
    kernels = [block.conv2.kernel_size[0] for block in network.layer3]
    assert kernels == [3, 1, 3, 1, 3, 1]


def small(**options):
    return RFResNet('rf29_r18', base_channels=8, stem_channels=8, **options)


def test_global_vector_is_the_mlp_of_the_mean_cell():
    network = small().eval()
    images = torch.randn(2, 3, 64, 64)
    feature_map, vector = network(images)
    torch.testing.assert_close(vector, network.mlp((feature_map.mean((2, 3)),))[0])
    split_vector, cells = split_features(network(images))
    assert torch.equal(split_vector, vector)
    assert torch.equal(cells[:, 8 + 2], feature_map[:, :, 1, 2])


def test_variants_of_the_mlp():
    images = torch.randn(2, 3, 64, 64)
    shortcut = small(mlp=dict(num_layers=2, shortcut=True)).eval()
    feature_map, vector = shortcut(images)
    pooled = feature_map.mean((2, 3))
    torch.testing.assert_close(vector, (pooled + shortcut.mlp((pooled,))[0]).relu())
    wide, single = small(mlp=dict(hid_channels=100)), small(mlp=dict(num_layers=1))
    assert wide.mlp.fc0.weight.shape == (100, 64)
    assert single(images)[1].shape == (2, 64)
    assert len(small(mlp=None)(images)) == 1


def test_mlp_is_frozen_with_the_last_stage_and_loaded_with_the_backbone(tmp_path):
    network = small(frozen_stages=4).train()
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.mlp.modules())
    assert small(frozen_stages=3).train().mlp.bn0.training
    state = {f'backbone.{name}': value + 1 for name, value in network.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'model.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth'), prefix='backbone.')
    loaded = small(frozen_stages=4, init_cfg=pretrained)
    loaded.init_weights()
    assert torch.equal(loaded.mlp.fc1.weight, network.mlp.fc1.weight + 1)


def test_initialization_is_that_of_resnet_without_zero_residuals():
    network = small()
    network.init_weights()
    assert (network.layer1[0].bn2.weight == 1).all()
    conv = network.layer4[0].conv2
    assert conv.kernel_size == (1, 1)
    assert conv.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)


def test_activation_checkpointing_changes_nothing():
    plain, saving = small(), small(with_cp=True)
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(plain(images)[1], saving(images)[1])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='rf98'), "arch must be one of rf99_even, .*, got 'rf98'"),
        (dict(arch=dict(depth=50)), "arch needs 'depth' and 'kept'"),
        (dict(arch=dict(depth=50, kept=(1, 1, 1, 1), stem='big')), "'stem' .one of"),
        (dict(arch=dict(depth=50, kept=(1, 1))), 'one entry for each of the 4 stages'),
        (dict(arch=dict(depth=50, kept=(4, 0, 0, 0))), 'layer1 has 3 3x3 convolutions'),
        (dict(receptive_field=107), 'receptive field of 99 pixels .jump 32., declared are 107'),
        (dict(avg_down=True), 'declared are 99'),
        (dict(out_indices=(1,)), 'the MLP needs the map of the last stage'),
    ],
)
def test_refuses_layouts_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        RFResNet(base_channels=4, **options)
