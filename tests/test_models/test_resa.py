import math

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from testing.distributed import run_distributed
from testing.resa_models import WIDTH, batch, build_resa, plain_config, resa_config, resnet_config
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from mm_sop.functional import sinkhorn


def encode(networks, view):
    """Encoding, and projection before any normalization."""
    features = networks['backbone'](view)[-1]
    encoding = features[:, 0] if features.ndim == 3 else features.mean((2, 3))
    return encoding, networks['neck']((encoding,))[0]


def cross_entropy(logits, assignment):
    total = 0.0
    for i in range(len(logits)):
        log_sum = torch.log(sum(logits[i, j].exp() for j in range(logits.shape[1])))
        total = total - sum(assignment[i, j] * (logits[i, j] - log_sum) for j in range(logits.shape[1]))
    return total / len(logits)


def oracle(model, views, source='online_momentum', symmetric=False):
    """The objective as the specification of the method writes it, pair by pair."""
    student = [encode(model.student, view) for view in views]
    with torch.no_grad():
        teacher = [encode(model.teacher, view) for view in views[:2]]
    predict = model.head.predictor or (lambda features: features)
    z = [normalize(predict((projection,))[0]) for _, projection in student]
    k = [normalize(projection) for _, projection in teacher]
    h, slow = normalize(student[0][0]).detach(), normalize(teacher[0][0])
    first, second = dict(online_momentum=(h, slow), momentum=(slow, slow), online=(h, h))[source]
    assignment = sinkhorn(first @ second.T, epsilon=0.05, iterations=3)
    terms = []
    for a in range(len(views)):
        for b in range(2):
            if a != b:
                logits = z[a] @ k[b].T / 0.4
                terms.append(cross_entropy(logits, assignment))
                if symmetric:
                    terms[-1] = (terms[-1] + cross_entropy(logits.T, assignment.T)) / 2
    assert len(terms) == 2 * len(views) - 2
    return sum(terms) / len(terms), assignment


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('source', ['online_momentum', 'momentum', 'online'])
@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('predictor', [False, True])
def test_loss_and_gradient_equal_the_loops(source, symmetric, predictor):
    options = dict(assignment_source=source, predictor=predictor, head=dict(symmetric=symmetric))
    model = build_resa(resa_config(**options))
    views = batch(num_crops=1)
    loss = model.loss(views)['loss_resa']
    expected, assignment = oracle(model, views, source, symmetric)
    assert 0.05 < assignment.diagonal().mean() < 0.99
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    measured, correct = gradients(model, loss), gradients(model, expected)
    assert measured.keys() == correct.keys()
    for name, value in correct.items():
        torch.testing.assert_close(measured[name], value, rtol=1e-7, atol=1e-11, msg=name)


def test_twelve_views_make_22_pairs():
    model = build_resa(resa_config())
    views = batch(num_crops=10)
    torch.testing.assert_close(model.loss(views)['loss_resa'], oracle(model, views)[0])


def test_resnet_with_two_views():
    model = build_resa(resnet_config())
    views = batch(num_crops=0)
    torch.testing.assert_close(model.loss(views)['loss_resa'], oracle(model, views)[0])


def plain_oracle(model, views):
    (h, first), (_, second) = (encode(model.student, view) for view in views)
    h = normalize(h).detach()
    assignment = sinkhorn(h @ h.T)
    logits = normalize(first) @ normalize(second).T / 0.4
    return (cross_entropy(logits, assignment) + cross_entropy(logits.T, assignment.T)) / 2


def test_plain_form_equals_the_loops_with_gradients_to_both_views():
    model = build_resa(plain_config())
    views = batch(num_crops=0)
    loss, expected = model.loss(views)['loss_resa'], plain_oracle(model, views)
    torch.testing.assert_close(loss, expected)
    measured, correct = gradients(model, loss), gradients(model, expected)
    for name, value in correct.items():
        torch.testing.assert_close(measured[name], value, rtol=1e-7, atol=1e-11, msg=name)


def test_without_a_teacher_the_student_is_evaluated_and_never_moved():
    model = build_resa(plain_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.update_teacher(0.3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    image = batch()[0]
    assert torch.equal(model.extract_feat(image)[0], model.extract_feat(image, network='student')[0])
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in model.student.parameters())


def test_gradient_reaches_every_online_parameter_and_nothing_else():
    model = build_resa(resa_config())
    model.loss(batch())['loss_resa'].backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    missing = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not missing, missing


def test_targets_follow_the_weak_view_alone():
    model = build_resa(resa_config())
    weak, strong, other = (batch(num_crops=0, seed=seed)[0] for seed in range(3))
    seen = []
    model.assigner.register_forward_hook(lambda *args: seen.append(args[-1]))
    for views in ([weak, strong], [weak, other], [strong, weak]):
        model.loss(views)
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2], atol=1e-3)


def test_gradient_scale_changes_the_gradient_and_not_the_value():
    views = batch()
    whole, part = (build_resa(resa_config(head=dict(grad_scale=scale))) for scale in (1.0, 0.25))
    losses = [model.loss(views)['loss_resa'] for model in (whole, part)]
    torch.testing.assert_close(losses[1], losses[0])
    full, quarter = gradients(whole, losses[0]), gradients(part, losses[1])
    for name, value in full.items():
        torch.testing.assert_close(quarter[name], value / 4, msg=name)


def test_views_are_normalized_one_at_a_time_and_the_teacher_collects_its_own_statistics():
    model = build_resa(resnet_config())
    views = batch(num_crops=0)
    model.loss(views)
    for networks in (model.student, model.teacher):
        weights, mean = networks['backbone'].conv1.weight, torch.zeros(8, dtype=torch.float64)
        for view in views:
            features = torch.nn.functional.conv2d(view, weights, padding=1)
            mean = 0.9 * mean + 0.1 * features.mean((0, 2, 3))
        torch.testing.assert_close(networks['backbone'].bn1.running_mean, mean)
    before = model.teacher['backbone'].bn1.running_mean.clone()
    model.update_teacher(0.5)
    assert torch.equal(model.teacher['backbone'].bn1.running_mean, before)
    assert not torch.allclose(before, model.backbone.bn1.running_mean)


def test_parameters_of_the_teacher_follow_the_given_momenta():
    model = build_resa(resa_config())
    expected = {name: value.clone() for name, value in model.teacher.named_parameters()}
    for momentum in (0.996, 0.9965, 0.998, 0.9994, 1.0):
        with torch.no_grad():
            for parameter in model.student.parameters():
                parameter.add_(0.1)
        student = dict(model.student.named_parameters())
        model.update_teacher(momentum)
        expected = {name: momentum * value + (1 - momentum) * student[name] for name, value in expected.items()}
    for name, value in model.teacher.named_parameters():
        torch.testing.assert_close(value, expected[name])
    assert 'predictor' not in ' '.join(name for name, _ in model.teacher.named_parameters())


def test_diagnostics_stay_out_of_the_objective_and_are_what_they_say():
    model = build_resa(resa_config())
    views = batch()
    total, log = model.parse_losses(model.loss(views))
    torch.testing.assert_close(total, log['loss_resa'])
    expected, assignment = oracle(model, views)
    entropy = -(assignment * assignment.log()).sum(1).mean()
    torch.testing.assert_close(log['assignment_entropy'], entropy / math.log(6))
    torch.testing.assert_close(log['assignment_kl'], expected - entropy)
    torch.testing.assert_close(log['assignment_self'], assignment.diagonal().mean())
    slow = normalize(encode(model.teacher, views[0])[0])
    off_diagonal = (slow @ slow.T)[~torch.eye(6, dtype=torch.bool)].mean()
    torch.testing.assert_close(log['encoding_cosine'], off_diagonal)
    assert log['cross_view_chance'] == pytest.approx(1 / 6)
    assert set(log) == {
        'loss', 'loss_resa', 'assignment_kl', 'assignment_entropy', 'assignment_self', 'encoding_cosine',
        'cross_view_top1', 'cross_view_chance', 'key_cosine', 'embedding_std',
    }  # fmt: skip
    assert not any(value.requires_grad for name, value in log.items() if 'loss' not in name)


def test_labels_and_cells_are_for_diagnostics_alone():
    model = build_resa(resa_config(local_head=dict(type='LocalGlobalHead', weight=0.3)))
    labels = [0, 1, 0, 2, 2, 2]
    samples = [DataSample().set_gt_label(label) for label in labels]
    torch.manual_seed(0)
    plain = model.loss(batch())
    torch.manual_seed(0)
    log = model.loss(batch(), samples)
    assert set(log) - set(plain) == {'assignment_same_class', 'same_class_chance'}
    assert all(torch.equal(log[name], value) for name, value in plain.items() if 'loss' in name)
    assert {'redundancy', 'local_global_cosine'} < set(plain)
    _, assignment = oracle(model, batch())
    same = torch.tensor([[first == second for second in labels] for first in labels])
    torch.testing.assert_close(log['assignment_same_class'], assignment[same].sum() / 6)
    assert log['same_class_chance'] == pytest.approx((4 + 1 + 9) / 36)


def test_every_image_finds_itself_where_networks_and_views_are_the_same():
    model = build_resa(resa_config(predictor=False))
    model.update_teacher(0.0)
    view = batch()[0]
    seen = []
    model.assigner.register_forward_hook(lambda *args: seen.append(args[-1]))
    losses = model.loss([view, view])
    assert torch.equal(seen[0].argmax(1), torch.arange(6))
    assert losses['cross_view_top1'] == 1


def test_autocast_leaves_assignment_and_loss_in_float32():
    model = build_resa(resa_config(), torch.float32)
    seen = []
    model.assigner.register_forward_hook(lambda *args: seen.append((args[1], args[-1])))
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.loss(batch(dtype=torch.float32))
    (samples, anchors), assignment = seen[0]
    assert losses['loss_resa'].dtype == assignment.dtype == torch.float32
    torch.testing.assert_close(assignment, sinkhorn(samples @ anchors.T), rtol=0, atol=0)
    losses['loss_resa'].backward()
    assert torch.isfinite(model.backbone.cls_token.grad).all()


def test_a_feature_row_of_zeros_gives_finite_losses():
    model = build_resa(resnet_config(), torch.float32)
    views = batch(num_crops=0, dtype=torch.float32)
    with torch.no_grad():
        for networks in (model.backbone, model.teacher['backbone']):
            networks.layer4[-1].norm2.weight.zero_()
            networks.layer4[-1].norm2.bias.fill_(-1e4)
    losses = model.loss(views)
    assert torch.isfinite(losses['loss_resa'])
    torch.testing.assert_close(losses['assignment_entropy'], torch.tensor(1.0))
    losses['loss_resa'].backward()


def test_loss_starts_near_the_logarithm_of_the_batch():
    model = build_resa(resnet_config(), torch.float32)
    losses = model.loss(batch(128, num_crops=0, dtype=torch.float32))
    assert losses['loss_resa'].item() == pytest.approx(math.log(128), rel=0.1)


@pytest.mark.parametrize('config', [resa_config, plain_config])
def test_state_dict_round_trip_continues_identically(config, tmp_path):
    model = build_resa(config())
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    twin = MODELS.build(config()).train().to(torch.float64)
    twin.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
    for seed in (1, 2):
        views = batch(num_crops=0, seed=seed)
        first, second = model.loss(views), twin.loss(views)
        assert all(torch.equal(first[key], second[key]) for key in first)


def one_step(rank, world_size, config):
    """Objective, gradients and diagnostics on this rank's part of the batch."""
    model = build_resa(config)
    wrapped = model if world_size == 1 else DistributedDataParallel(model, broadcast_buffers=False)
    losses = wrapped([view[rank::world_size] for view in batch(8, num_crops=0)], None, mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    return (
        {name: value.item() for name, value in losses.items()},
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
    )


CONFIGS = [
    resa_config(),
    resa_config(assignment_source='momentum', head=dict(symmetric=True)),
    resa_config(assignment_source='online', predictor=False),
    plain_config(),
    resa_config(local_head=dict(type='LocalGlobalHead', num_cells=4)),
]


@pytest.mark.parametrize(
    ('config', 'world_size'), [*[(config, 2) for config in CONFIGS], (CONFIGS[0], 4), (CONFIGS[3], 4)]
)
def test_processes_with_parts_of_the_batch_are_one_process_with_the_whole(config, world_size):
    single, gradient = one_step(0, 1, config)
    ranks = run_distributed(one_step, config, world_size=world_size)
    for name, value in single.items():
        assert sum(losses[name] for losses, _ in ranks) / world_size == pytest.approx(value, rel=1e-9), name
    for name, value in gradient.items():
        torch.testing.assert_close(ranks[0][1][name], value, rtol=1e-7, atol=1e-11, msg=name)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(assignment_source='strong'), "must be one of .* got 'strong'"),
        (dict(use_teacher=False), "use_teacher=False needs assignment_source='online'"),
        (dict(use_teacher=False, assignment_source='online'), "a head without predictor, got 'online' and MLPNeck"),
        (dict(head=dict(temperature=0.0)), 'temperature and grad_scale must be positive'),
        (dict(head=dict(grad_scale=0.0)), 'temperature and grad_scale must be positive'),
        (dict(assigner=dict(type='SinkhornAssigner', epsilon=0)), 'epsilon > 0'),
        (dict(neck=dict(type='MLPNeck', in_channels=32, num_layers=0)), 'num_layers must be at least 1'),
    ],
)
def test_refuses_settings_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(resa_config(**options))


def test_refuses_batches_that_do_not_fit():
    views = batch()
    with pytest.raises(ValueError, match='begins with two global views of one size'):
        build_resa(resa_config()).loss(views[1:])
    with pytest.raises(ValueError, match='no use for local crops, got 3 views'):
        build_resa(plain_config()).loss(views)


def test_necks_of_transformers():
    neck = MODELS.build(dict(type='MLPNeck', in_channels=8, hid_channels=12, out_channels=WIDTH, pre_norm=True))
    neck.init_weights()
    norm, *layers = neck.layers
    assert norm.eps == 1e-6
    assert [type(layer).__name__ for layer in layers] == ['Linear', 'GELU', 'Linear', 'GELU', 'Linear']
    bound = math.sqrt(6 / (8 + 12))
    assert layers[0].weight.abs().max() <= bound < 1.2 * layers[0].weight.abs().max()
    assert not any(layer.bias.any() for layer in layers[::2])
    features = torch.randn(3, 8)
    torch.testing.assert_close(neck((features,)), (neck((5 * features,))[0],), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('predictor', 'parameters'), [(False, 9_449_984), (True, 2_103_808)])
def test_heads_of_the_imagenet_config_have_the_published_size(repository, predictor, parameters):
    from mmengine.config import Config

    model = Config.fromfile(repository / 'configs/resa/resa_r50_b256_100e.py').model
    neck = MODELS.build(model.head.predictor if predictor else model.neck)
    assert sum(parameter.numel() for parameter in neck.parameters()) == parameters
