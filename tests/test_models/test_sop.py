import math

import pytest
import torch
from mmpretrain.registry import MODELS
from testing.distributed import run_distributed
from testing.sop_models import WIDTH, batch, build_sop, objective, prototypes, sop_config
from torch.nn.parallel import DistributedDataParallel

from mm_sop.functional import koleo_loss, prototype_log_probs


def copy_of(bank):
    return bank.embeddings.clone()


def test_losses_equal_the_loops_of_the_paper():
    model = build_sop(head=dict(koleo_weight=0.1))
    views, samples = batch()
    drawn = {}
    for name, owner in (('cls', model.head), ('patch', model.target_generator)):
        owner.prototypes.register_forward_hook(lambda *args, name=name: drawn.update({name: args[-1]}))
    losses = model.loss(views, samples)

    mask = torch.stack([torch.as_tensor(sample.mask) for sample in samples], 1).flatten(2)
    student = [model.neck(model.backbone(views[v], mask[v])[0]) for v in range(2)]
    crops = [model.neck(model.backbone(crop)[0]) for crop in views[2:]]
    teacher = [model.teacher['neck'](model.teacher['backbone'](views[v])[0]) for v in range(2)]
    cls_loss = 0.0
    for members, weights in zip(*drawn['cls'], strict=True):
        log_p = [prototype_log_probs(view[:, 0], members, weights, 0.1) for view in student + crops]
        q = [prototype_log_probs(view[:, 0], members, weights, 0.04).exp() for view in teacher]
        pairs = [-(q[j] * log_p[i]).sum(1).mean() for i in range(4) for j in range(2) if i != j]
        assert len(pairs) == 6
        cls_loss += sum(pairs) / len(pairs) / 2
    torch.testing.assert_close(losses['loss_cls'], cls_loss)
    torch.testing.assert_close(losses['loss_koleo'], 0.1 * sum(koleo_loss(view[:, 0]) for view in student))

    members, weights = drawn['patch'].members[0], drawn['patch'].weights[0]
    mim_loss = 0.0
    for v in range(2):
        for image in range(4):
            log_p = prototype_log_probs(student[v][image, 1:], members, weights, 0.1)
            q = prototype_log_probs(teacher[v][image, 1:], members, weights, 0.04).exp()
            token = -(q * log_p).sum(1)
            mim_loss += (token * mask[v, image]).sum() / max(1, mask[v, image].sum()) / 4 / 2
    torch.testing.assert_close(losses['loss_mim'], mim_loss)


def test_keys_are_view_two_and_enter_the_banks_after_the_losses():
    model = build_sop()
    views, samples = batch()
    before = copy_of(model.head.prototypes.bank), copy_of(model.target_generator.prototypes.bank)
    drawn = model.head.prototypes.register_forward_hook(lambda *args: drawn_members.append(args[-1].members))
    drawn_members = []
    model.loss(views, samples)
    drawn.remove()
    tokens = model.teacher['neck'](model.teacher['backbone'](views[1])[0])
    bank = model.head.prototypes.bank
    torch.testing.assert_close(bank.embeddings[:4], tokens[:, 0])
    assert torch.equal(bank.embeddings[4:], before[0][4:])
    local = model.target_generator.prototypes.bank.embeddings
    cosines = torch.einsum('bd,bld->bl', local[:4], tokens[:, 1:])
    torch.testing.assert_close(cosines.amax(1), torch.ones(4))
    assert torch.equal(local[4:], before[1][4:])
    # The prototypes of the step are rows of the bank as it was.
    assert ((drawn_members[0].flatten(0, 2) @ before[0].T).amax(1) > 0.9999).all()


def test_both_views_can_be_keys():
    model = build_sop(key_views=(0, 1))
    views, samples = batch()
    model.loss(views, samples)
    expected = torch.cat([model.teacher['neck'](model.teacher['backbone'](view)[0][:, 0]) for view in views[:2]])
    torch.testing.assert_close(model.head.prototypes.bank.embeddings[:8], expected)
    assert int(model.target_generator.prototypes.bank.pointer) == 8


def test_random_key_tokens_cover_all_positions():
    model = build_sop()
    positions = model._draw_key_positions(400, 16, torch.device('cpu'))
    # One token of each image of the second view, the key view
    assert torch.equal(positions // 16, torch.arange(400, 800))
    counts = torch.bincount(positions % 16, minlength=16)
    assert ((counts - 25.0) ** 2 / 25).sum() < 37.7


def test_gradient_reaches_the_student_only_and_every_parameter_of_it():
    model = build_sop()
    objective(model.loss(*batch())).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    missing = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not missing, missing


@pytest.mark.parametrize('fraction', [0.0, 1.0])
def test_empty_and_full_masks(fraction):
    model = build_sop()
    views, samples = batch(mask_fraction=fraction)
    losses = model.loss(views, samples)
    objective(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.backbone.mask_token.grad is not None
    torch.testing.assert_close(losses['masked_fraction'], torch.tensor(fraction * 0.75))
    if fraction == 0:
        assert losses['loss_mim'] == 0


def test_initial_losses_are_those_of_the_specification():
    torch.manual_seed(0)
    head = dict(prototypes=dict(type='PrototypeSampler', bank=dict(type='SupportEmbeddingBank', size=65536)))
    head = MODELS.build(dict(type='SOPHead', **head))
    queries = torch.nn.functional.normalize(torch.randn(6, 256, 256), dim=-1)
    losses = head.loss(queries[:4], queries[4:])
    assert abs(losses['loss_cls'].item() / 3.44 - 1) < 0.02
    assert abs(losses['support_cosine'].item() - 0.24) < 0.02
    assert losses['max_entropy'].item() == pytest.approx(math.log(32))


def test_diagnostics_stay_out_of_the_objective():
    model = build_sop()
    total, log = model.parse_losses(model.loss(*batch()))
    torch.testing.assert_close(total, log['loss_cls'] + log['loss_mim'])
    diagnostics = {k for k in log if 'loss' not in k}
    assert diagnostics == {
        'support_cosine', 'support_cosine_max', 'key_cosine', 'target_entropy', 'mean_target_entropy', 'max_entropy',
        'embedding_std', 'distinct_targets', 'agreement', 'masked_fraction',
    }  # fmt: skip
    assert not any(log[name].requires_grad for name in diagnostics)


def test_diagnostics_of_a_collapsed_and_of_a_spread_batch():
    from mm_sop.models.utils.diagnostics import assignment_diagnostics, key_diagnostics

    same = torch.ones(5, 4) / 2
    torch.testing.assert_close(key_diagnostics(same)['key_cosine'], torch.tensor(1.0))
    torch.testing.assert_close(key_diagnostics(torch.eye(5))['key_cosine'], torch.tensor(0.0))
    uniform = torch.full((2, 6, 8), 1 / 8)
    one = torch.nn.functional.one_hot(torch.arange(6).repeat(2, 1) % 4, 8).float()
    flat = assignment_diagnostics(uniform.log(), uniform, 2)
    assert flat['target_entropy'].item() == pytest.approx(math.log(8))
    sharp = assignment_diagnostics(one.flip(0).clamp_min(1e-9).log(), one, 1)
    assert sharp['target_entropy'].item() == 0
    assert sharp['distinct_targets'].item() == pytest.approx(4 / 8)
    assert sharp['agreement'].item() == 1


def test_without_mim_masks_are_ignored_and_every_parameter_is_used():
    model = build_sop(mim=False)
    views, samples = batch()
    losses = model.loss(views, samples)
    assert not [key for key in losses if 'mim' in key]
    objective(losses).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_update_of_the_teacher():
    model = build_sop()
    before = {name: value.clone() for name, value in model.teacher.named_parameters()}
    model.update_teacher(0.9)
    student = dict(model.student.named_parameters())
    for name, value in model.teacher.named_parameters():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * student[name])
    assert model.teacher['backbone'].mask_token is None
    assert not any(key.endswith('mask_token') for key in model.state_dict() if key.startswith('teacher'))


@pytest.mark.parametrize(('mode', 'expected'), [('keep', 0.0), ('copy', 1.0), ('average', 0.1)])
def test_teacher_buffers(mode, expected):
    model = MODELS.build(sop_config(mim=False, backbone=dict(type='ResNet', depth=18), teacher_buffers=mode))
    model.backbone.bn1.running_mean.fill_(1.0)
    model.update_teacher(0.9)
    torch.testing.assert_close(model.teacher['backbone'].bn1.running_mean, torch.full((64,), expected))


def test_teacher_starts_as_the_student_and_never_drops():
    config = sop_config()
    config['backbone'].update(drop_path_rate=0.5, drop_rate=0.5)
    model = MODELS.build(config).train()
    model.init_weights()
    images = torch.randn(2, 3, 16, 16)
    outputs = [model.teacher['backbone'](images)[0] for _ in range(2)]
    assert torch.equal(*outputs)
    torch.testing.assert_close(outputs[0], model.eval().backbone(images)[0])


def test_temperature_is_set_in_both_objectives():
    model = build_sop()
    model.set_teacher_temperature(0.06)
    assert model.head.teacher_temperature == model.target_generator.teacher_temperature == 0.06


def test_features_of_transformers_and_convolutional_networks():
    model = build_sop().eval()
    images = torch.randn(2, 3, 16, 24)
    cls, local = model.extract_feat(images)
    tokens = model.teacher['backbone'](images)[0]
    assert torch.equal(cls, tokens[:, 0])
    assert local.shape == (2, 32, 4, 6)
    torch.testing.assert_close(local[:, :, 1, 2], tokens[:, 1 + 6 + 2])
    assert not torch.equal(model.extract_feat(images, network='student')[0], cls)
    neck = dict(type='SOPNeck', in_channels=512, hid_channels=32, out_channels=WIDTH)
    resnet = MODELS.build(sop_config(mim=False, backbone=dict(type='ResNet', depth=18), neck=neck)).eval()
    pooled, local = resnet.extract_feat(torch.randn(2, 3, 64, 96))
    assert local.shape == (2, 512, 2, 3)
    torch.testing.assert_close(pooled, local.mean((2, 3)))
    losses = resnet.loss([torch.randn(4, 3, 64, 64)] * 2, None)
    assert set(losses) >= {'loss_cls'} and 'loss_mim' not in losses


def test_state_dict_round_trip_continues_identically(tmp_path):
    model = build_sop()
    model.loss(*batch())
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    twin = MODELS.build(sop_config()).train()
    twin.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
    for seed in (1, 2):
        first, second = model.loss(*batch(seed=seed)), twin.loss(*batch(seed=seed))
        assert all(torch.equal(first[key], second[key]) for key in first)


def one_step(rank, world_size):
    """Losses, gradients and banks after two steps on this rank's part of the batch."""
    model = build_sop(head=dict(koleo_weight=0.1), key_views=(0, 1))
    wrapped = model if world_size == 1 else DistributedDataParallel(model, broadcast_buffers=False)
    totals = []
    for seed in range(2):
        torch.manual_seed(17 * rank)
        views, samples = batch(8, seed=seed)
        views, samples = [view[rank::world_size] for view in views], samples[rank::world_size]
        loss = objective(wrapped(views, samples, mode='loss'))
        loss.backward()
        totals.append(loss.item())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return totals, gradients, copy_of(model.head.prototypes.bank), copy_of(model.target_generator.prototypes.bank)


def test_two_processes_with_half_the_batch_are_one_process_with_the_whole():
    single = one_step(0, 1)
    ranks = run_distributed(one_step)
    for step in range(2):
        assert sum(rank[0][step] for rank in ranks) / 2 == pytest.approx(single[0][step], rel=1e-5)
    for name, gradient in single[1].items():
        torch.testing.assert_close(ranks[0][1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    for bank in (2, 3):
        assert torch.equal(ranks[0][bank], ranks[1][bank])
        torch.testing.assert_close(ranks[0][bank], single[bank])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(mim_head=None), 'target_generator and mim_head belong together'),
        (dict(backbone=dict(type='ResNet', depth=18)), 'ResNet cannot mask patches: use MaskedVisionTransformer'),
        (dict(key_views=(2,)), 'key_views must name one or both of the global views'),
        (dict(head=dict(student_temperature=0)), 'temperatures 0 and 0.04 must be positive'),
        (dict(head=dict(koleo_weight=-1.0)), 'the weights 1.0 and -1.0 not negative'),
        (dict(mim_head=dict(type='SOPMIMHead', loss_weight=-1.0)), 'loss_weight=-1.0 not negative'),
        (
            dict(target_generator=dict(type='SOPMIMTargetGenerator', prototypes=prototypes(), teacher_temperature=0)),
            'teacher_temperature=0 must be positive',
        ),
        (dict(teacher_buffers='none'), "must be 'keep', 'copy' or 'average', got 'none'"),
    ],
)
def test_refuses_settings_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(sop_config(**options))


def test_refuses_batches_that_do_not_fit():
    model = build_sop()
    views, samples = batch()
    with pytest.raises(ValueError, match='begins with two global views of one size'):
        model.loss(views[1:], samples)
    with pytest.raises(ValueError, match='masked image modeling needs masks: add'):
        model.loss(views, None)
    with pytest.raises(ValueError, match='grid of the mask generator must be the crop size divided by the patch size'):
        model.loss([view[..., :12, :12] for view in views], samples)
    with pytest.raises(ValueError, match="network must be 'teacher' or 'student', got 'both'"):
        model.extract_feat(views[0], network='both')
