"""Pretrained backbones of detectors: complete or refused."""

import copy

import pytest
import torch
from mmdet.registry import MODELS as DETECTION_MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from mm_sop.encoders.checkpoint import WeightsError
from mm_sop.encoders.pretrained import PretrainedBackbone
from mm_sop.engine.launch import set_pretrained

VIT = dict(arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48), patch_size=8, stem='conv')
RESNET = dict(type='ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8, out_indices=(0, 1, 2, 3))
# The backbone of the composites
NARROW = dict(RESNET, base_channels=16, stem_channels=16, strides=(2, 2, 2, 2))


def save(path, backbone, **others):
    """A checkpoint with a teacher and a student that differ."""
    torch.manual_seed(1)
    student, teacher = MODELS.build(backbone), MODELS.build(backbone)
    for network in (student, teacher):
        network.init_weights()
        for value in network.state_dict().values():
            value.copy_(torch.randn(value.shape) if value.is_floating_point() else value)
    state = {f'backbone.{name}': value for name, value in student.state_dict().items()}
    state |= {f'teacher.backbone.{name}': value for name, value in teacher.state_dict().items() if name != 'mask_token'}
    torch.save(dict(state_dict=state | {'neck.weight': torch.zeros(2)} | others), path)
    return student.state_dict(), teacher.state_dict()


def build_detector(repository, name, init_cfg, **changes):
    """A detector of the composites, with its backbone changed."""
    DefaultScope.get_instance(str(torch.rand(())), scope_name='mmdet')
    config = Config.fromfile(repository / f'configs/detection/{name}.py')
    config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    return DETECTION_MODELS.build(dict(config.model, init_cfg=dict(type='PretrainedBackbone', **init_cfg)))


def assert_equal(found, expected):
    assert found.keys() <= expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], msg=name)


@pytest.mark.parametrize('network', ['teacher', 'student'])
def test_resnet_keeps_the_loaded_weights(tmp_path, repository, network):
    student, teacher = save(tmp_path / 'sop.pth', NARROW)
    # zero_init_residual would reset norms after loading.
    changes = {'backbone.zero_init_residual': True}
    init_cfg = dict(checkpoint=str(tmp_path / 'sop.pth'), network=network)
    model = build_detector(repository, 'mask-rcnn_r18_fpn_composites', init_cfg, **changes)
    model.init_weights()
    assert_equal(model.backbone.state_dict(), teacher if network == 'teacher' else student)
    assert model.neck.lateral_convs[0].conv.weight.std() > 0


def test_c4_detector_gets_the_last_stage_in_its_head(tmp_path, repository):
    _, teacher = save(tmp_path / 'sop.pth', NARROW)
    init_cfg = dict(checkpoint=str(tmp_path / 'sop.pth'), ignored=['norm.'])
    model = build_detector(repository, 'mask-rcnn_r18_c4_composites', init_cfg)
    model.init_weights()
    assert_equal(model.backbone.state_dict(), teacher)
    stage = {n: v for n, v in model.roi_head.shared_head.state_dict().items() if not n.startswith('norm.')}
    assert_equal(stage, teacher)
    assert len(stage) + len(model.backbone.state_dict()) == len(teacher)
    init_cfg.pop('ignored')
    with pytest.raises(WeightsError, match='missing .*norm.weight'):
        build_detector(repository, 'mask-rcnn_r18_c4_composites', init_cfg).init_weights()


def test_position_embedding_is_resized_once_and_blocks_stay_loaded(tmp_path):
    _, teacher = save(tmp_path / 'sop.pth', dict(VIT, type='MaskedVisionTransformer', img_size=48))
    model = torch.nn.Module()
    model.backbone = MODELS.build(dict(VIT, type='WindowedVisionTransformer', img_size=(64, 80), window_size=4))
    PretrainedBackbone(str(tmp_path / 'sop.pth'))(model)
    assert model.backbone.is_init
    loaded = model.backbone.state_dict()
    position = loaded.pop('pos_embed')
    assert_equal(loaded, teacher)
    grid = teacher['pos_embed'][:, 1:].view(1, 6, 6, 24).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, (8, 10), mode='bicubic', align_corners=False)
    torch.testing.assert_close(position[:, 1:], expected.flatten(2).mT)
    torch.testing.assert_close(position[:, :1], teacher['pos_embed'][:, :1])


@pytest.mark.parametrize(('img_size', 'grid'), [((32, 48), (4, 6)), ((32, 72), (4, 9))])
def test_position_embedding_of_rectangular_images(tmp_path, img_size, grid):
    """4 x 6 patches are not a square; 4 x 9 are as many as in a square of 6."""
    _, teacher = save(tmp_path / 'sop.pth', dict(VIT, type='MaskedVisionTransformer', img_size=img_size))
    position = teacher['pos_embed'][:, 1:].view(1, *grid, 24).permute(0, 3, 1, 2)

    def load(size, **options):
        model = torch.nn.Module()
        model.backbone = MODELS.build(dict(VIT, type='WindowedVisionTransformer', img_size=size, window_size=4))
        PretrainedBackbone(str(tmp_path / 'sop.pth'), **options)(model)
        return model.backbone.pos_embed[:, 1:]

    expected = torch.nn.functional.interpolate(position, (8, 10), mode='bicubic', align_corners=False)
    torch.testing.assert_close(load((64, 80), grid=grid), expected.flatten(2).mT)
    torch.testing.assert_close(load(img_size, grid=grid), teacher['pos_embed'][:, 1:])
    with pytest.raises(WeightsError, match=rf'for {grid[0] * grid[1]} patches, but init_cfg.grid=\(3, 5\): give'):
        load((64, 80), grid=(3, 5))


def test_a_grid_is_asked_for_where_it_is_neither_a_square_nor_the_same(tmp_path):
    _, teacher = save(tmp_path / 'sop.pth', dict(VIT, type='MaskedVisionTransformer', img_size=(32, 48)))
    model = torch.nn.Module()
    model.backbone = MODELS.build(dict(VIT, type='WindowedVisionTransformer', img_size=(32, 48), window_size=4))
    PretrainedBackbone(str(tmp_path / 'sop.pth'))(model)
    torch.testing.assert_close(model.backbone.pos_embed, teacher['pos_embed'])
    model.backbone = MODELS.build(dict(VIT, type='WindowedVisionTransformer', img_size=64, window_size=4))
    with pytest.raises(WeightsError, match=r'model.init_cfg.grid=\[16,20\]'):
        PretrainedBackbone(str(tmp_path / 'sop.pth'))(model)


def test_a_square_is_not_read_as_a_rectangle_of_as_many_patches(tmp_path):
    _, teacher = save(tmp_path / 'sop.pth', dict(VIT, type='MaskedVisionTransformer', img_size=48))
    model = torch.nn.Module()
    model.backbone = MODELS.build(dict(VIT, type='WindowedVisionTransformer', img_size=(32, 72), window_size=4))
    PretrainedBackbone(str(tmp_path / 'sop.pth'))(model)
    grid = teacher['pos_embed'][:, 1:].view(1, 6, 6, 24).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, (4, 9), mode='bicubic', align_corners=False)
    torch.testing.assert_close(model.backbone.pos_embed[:, 1:], expected.flatten(2).mT)


def test_cascade_reads_no_final_norm(tmp_path, repository):
    vit = Config.fromfile(repository / 'configs/sop/vitt_composites.py').model.backbone
    _, teacher = save(tmp_path / 'sop.pth', vit)
    init_cfg = dict(checkpoint=str(tmp_path / 'sop.pth'), ignored=['ln1.'])
    model = build_detector(repository, 'cascade-mask-rcnn_vitt_composites', init_cfg)
    model.init_weights()
    loaded = model.backbone.state_dict()
    assert loaded.pop('pos_embed').shape[1] == 1 + 16 * 20
    assert_equal(loaded, teacher)
    assert teacher.keys() - loaded.keys() == {'pos_embed', 'mask_token', 'ln1.weight', 'ln1.bias'}


def test_mmdetections_resnet_has_the_same_names(tmp_path):
    _, teacher = save(tmp_path / 'sop.pth', dict(type='ResNet', depth=50, base_channels=4, stem_channels=4))
    model = torch.nn.Module()
    model.backbone = DETECTION_MODELS.build(dict(type='mmdet.ResNet', depth=50, base_channels=4, stem_channels=4))
    PretrainedBackbone(str(tmp_path / 'sop.pth'))(model)
    assert_equal(model.backbone.state_dict(), teacher)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(depth=34), r'80 of 180 tensors are missing:\n  missing +(teacher.)?backbone.layer1.2.bn1.bias'),
        (dict(base_channels=16, stem_channels=16), r'shape +conv1.weight +\(8, 3, 3, 3\), expected \(16, 3, 3, 3\)'),
        (dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)), 'unexpected +layer4.0'),
    ],
)
def test_partial_weights_are_refused_with_a_table(tmp_path, changes, message):
    save(tmp_path / 'sop.pth', RESNET)
    model = torch.nn.Module()
    model.backbone = MODELS.build(RESNET | changes)
    before = copy.deepcopy(model.backbone.state_dict())
    with pytest.raises(WeightsError, match=message):
        PretrainedBackbone(str(tmp_path / 'sop.pth'))(model)
    assert_equal(model.backbone.state_dict(), before)


def test_no_checkpoint():
    with pytest.raises(WeightsError, match='--pretrained none to train from scratch'):
        PretrainedBackbone(None)
    with pytest.raises(ValueError, match="network='both'"):
        PretrainedBackbone('x.pth', network='both')


def test_option_keeps_what_the_config_says_and_can_take_it_away():
    config = Config(dict(model=dict(init_cfg=dict(type='PretrainedBackbone', checkpoint=None, ignored=['norm.']))))
    set_pretrained(config, 'a.pth')
    assert config.model.init_cfg == dict(type='PretrainedBackbone', checkpoint='a.pth', ignored=['norm.'])
    set_pretrained(config, 'none')
    assert config.model.init_cfg is None
