import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import MODELS
from testing.siamese_models import NUM_PROTOTYPES, build_siamese, dino_neck, objective, siamese_config, views
from torch.nn.functional import interpolate, log_softmax, normalize, softmax

from mm_sop.models.heads.dino_head import CenteredTargets
from mm_sop.models.necks.dino_neck import PrototypeLayer
from mm_sop.models.utils.tokens import split_features


def scores(backbone, neck, view):
    return neck((split_features(backbone(view))[0],))[0]


def test_multi_crop_loss_is_that_of_the_paper():
    """The double loop of DINO's algorithm 1 over teacher and student views."""
    model, images = build_siamese('dino'), views(num_crops=3)
    center = torch.randn(NUM_PROTOTYPES)
    model.head.make_targets.center.copy_(center)
    student = [scores(model.backbone, model.neck, view) for view in images]
    teacher = [scores(model.teacher['backbone'], model.teacher['neck'], view) for view in images[:2]]
    total, terms = 0, 0
    for i, target in enumerate(teacher):
        for j, output in enumerate(student):
            if i != j:
                probs = softmax((target - center) / 0.04, dim=-1)
                total = total - (probs * log_softmax(output / 0.1, dim=-1)).sum(-1).mean()
                terms += 1
    assert terms == 8
    torch.testing.assert_close(model.loss(images)['loss_global'], total / terms)
    expected = 0.9 * center + 0.1 * torch.cat(teacher).mean(0)
    torch.testing.assert_close(model.head.make_targets.center, expected.detach())


def test_views_of_one_size_share_their_batch_statistics():
    model, images = build_siamese('dino', batch_norm=True), views(side=32)
    model.backbone.bn1.momentum = 1.0
    stem = model.backbone.conv1(torch.cat(images))
    model.loss(images)
    torch.testing.assert_close(model.backbone.bn1.running_mean, stem.mean((0, 2, 3)))


def test_cells_have_a_center_of_their_own():
    model = build_siamese('dino', local=dict(num_cells=None))
    images = views()
    cells = torch.stack([split_features(model.teacher['backbone'](view))[1] for view in images])
    local = model.teacher['local_projector']((cells.flatten(0, 2),))[0]
    model.loss(images)
    torch.testing.assert_close(model.local_head.make_targets.center, 0.1 * local.mean(0))
    assert not torch.allclose(model.local_head.make_targets.center, model.head.make_targets.center)
    assert {'head.make_targets.center', 'local_head.make_targets.center'} <= model.state_dict().keys()


def test_own_space_moves_the_center_once_in_a_step():
    model = build_siamese('dino', local=dict(num_cells=None, space='own'))
    calls = []
    model.local_head.make_targets.register_forward_hook(lambda *args: calls.append(args[-1].shape))
    model.loss(views())
    assert calls == [(2, 4, 17, NUM_PROTOTYPES)]


def test_center_stands_still_in_evaluation_mode():
    rule = CenteredTargets(5).eval()
    rule(torch.randn(2, 3, 5))
    assert not rule.center.any()
    with pytest.raises(ValueError, match='temperature > 0 and momentum in'):
        CenteredTargets(5, temperature=0)


def test_temperature_is_set_for_vectors_and_cells():
    model = build_siamese('dino', local=dict())
    model.set_teacher_temperature(0.06)
    assert model.head.make_targets.temperature == model.local_head.make_targets.temperature == 0.06
    build_siamese('dino').set_teacher_temperature(0.05)


def test_prototypes_are_cosines_times_a_learned_length():
    layer, embeddings = PrototypeLayer(4, 6), normalize(torch.randn(3, 4), dim=-1)
    cosines = torch.stack([layer.weight @ row / layer.weight.norm(dim=1) for row in embeddings])
    torch.testing.assert_close(layer(embeddings), cosines)
    free = PrototypeLayer(4, 6, learn_length=True)
    free.length.data = torch.arange(6.0)[:, None]
    torch.testing.assert_close(
        free(embeddings), torch.arange(6) * PrototypeLayer.forward(_without_length(free), embeddings)
    )
    assert layer.length is None


def _without_length(layer):
    copy = PrototypeLayer(4, 6)
    copy.weight = layer.weight
    return copy


def test_neck_is_a_normalized_projector_with_prototypes():
    neck = MODELS.build(dino_neck(16))
    neck.init_weights()
    rows = torch.randn(5, 16)
    embeddings = neck.projector(rows)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(5))
    assert torch.equal(neck((rows,))[0], neck.prototypes(embeddings))


def test_shared_head_serves_cells_with_the_same_prototypes():
    config = siamese_config('dino') | dict(local_head=dict(type='LocalGlobalHead'))
    model = MODELS.build(config)
    model.train()
    losses = model.loss(views())
    objective(losses).backward()
    assert set(model.teacher) == {'backbone', 'neck'}
    assert losses['loss_local'] > 0


@pytest.fixture(scope='module')
def recipe():
    """The model of the ViT recipe with two blocks and few prototypes, as training begins."""
    config = Config.fromfile(Path(__file__).parents[2] / 'configs/_base_/models/dino_vit.py').model
    arch = dict(embed_dims=384, num_layers=2, num_heads=6, feedforward_channels=1536)
    config.neck.num_prototypes = config.head.num_prototypes = 50
    model = MODELS.build(dict(config, backbone=dict(config.backbone, arch=arch)))
    model.train()
    model.init_weights()
    return model


def test_recipe_starts_from_the_weights_of_the_authors(recipe):
    linear = [module for module in recipe.backbone.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) == 8
    assert [module.weight.std().item() for module in linear] == pytest.approx([0.02] * 8, rel=0.02)
    assert not any(module.bias.any() for module in linear)
    for token in (recipe.backbone.cls_token, recipe.backbone.pos_embed):
        assert token.std().item() == pytest.approx(0.02, rel=0.12)
    bound = 1 / math.sqrt(3 * 16 * 16)
    weight = recipe.backbone.patch_embed.projection.weight
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02), "uniform, PyTorch's default"


def test_recipe_sees_small_crops_where_the_authors_see_them(recipe):
    """Bicubic by the scale (6 + 0.1) / 14, position by position of 96 pixels."""
    images = torch.randn(2, 3, 96, 96)
    backbone = recipe.teacher['backbone']
    grid = backbone.pos_embed[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    resized = interpolate(grid, scale_factor=6.1 / 14, mode='bicubic').flatten(2).mT
    tokens = backbone.patch_embed.projection(images).flatten(2).mT + resized
    start = (backbone.cls_token + backbone.pos_embed[:, :1]).expand(2, -1, -1)
    tokens = torch.cat([start, tokens], 1)
    for layer in backbone.layers:
        tokens = layer(tokens)
    torch.testing.assert_close(backbone(images)[0], backbone.ln1(tokens))


def test_recipe_trains_every_parameter_and_loads_older_checkpoints(recipe):
    objective(recipe.loss([torch.randn(2, 3, side, side) for side in (224, 224, 96)])).backward()
    trained = {name: parameter for name, parameter in recipe.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in trained.items() if parameter.grad is None} == set()
    plain = VisionTransformer(recipe.backbone.arch_settings, img_size=224, patch_size=16, out_type='raw').state_dict()
    for backbone in (recipe.backbone, recipe.teacher['backbone']):
        assert plain.keys() == backbone.state_dict().keys()


def test_refuses_different_numbers_of_prototypes():
    with pytest.raises(ValueError, match='num_prototypes of neck, head and local projector must be equal, got 30'):
        MODELS.build(siamese_config('dino', head=dict(type='DINOHead', num_prototypes=30)))
    local_head = dict(type='LocalGlobalHead', projector=dict(dino_neck(16), num_prototypes=7))
    with pytest.raises(ValueError, match='got 20 in the head and 7 in a projector'):
        MODELS.build(siamese_config('dino') | dict(local_head=local_head))
