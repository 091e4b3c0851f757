import pytest
import torch
from mmengine.logging import MessageHub
from mmpretrain.registry import MODELS
from testing.distributed import run_distributed
from testing.siamese_models import RESNET, VIT, build_siamese, mlp, non_linear, objective, siamese_config, views
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax, normalize
from torch.nn.parallel import DistributedDataParallel

from mm_sop.models.utils.tokens import split_features

METHODS = ('byol', 'moco', 'dino')


# The bases


def reference_loss(name, head, neck, model, images):
    """Loss of MMPretrain's algorithm with the weights of ours."""
    MessageHub.get_current_instance().update_info('max_iters', 10)
    theirs = MODELS.build(dict(type=name, backbone=RESNET, neck=dict(neck, with_avg_pool=True), head=head))
    theirs.train()
    theirs.backbone.load_state_dict(model.backbone.state_dict())
    theirs.neck.load_state_dict(model.neck.state_dict())
    theirs.head.predictor.load_state_dict(model.head.predictor.state_dict())
    average = theirs.target_net if name == 'BYOL' else theirs.momentum_encoder
    for module, key in zip(average.module, ('backbone', 'neck'), strict=True):
        module.load_state_dict(model.teacher[key].state_dict())
    # Past its first call, which copies, and without a move.
    average.steps.fill_(1)
    average.momentum = 0.0
    return theirs, theirs.loss(images, None)['loss']


def check_equal_to(theirs, their_loss, model, images):
    losses = model.loss(images)
    torch.testing.assert_close(losses['loss_global'], their_loss)
    losses['loss_global'].backward()
    their_loss.backward()
    for part in ('backbone', 'neck', 'head.predictor'):
        expected = dict(theirs.get_submodule(part).named_parameters())
        for name, parameter in model.get_submodule(part).named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5)
    # BatchNorm has seen the same, too.
    expected = theirs.backbone.state_dict()
    torch.testing.assert_close(model.backbone.bn1.running_mean, expected['bn1.running_mean'])


def test_byol_equals_that_of_mmpretrain():
    model, images = build_siamese('byol', batch_norm=True), views(side=32)
    head = dict(type='LatentPredictHead', predictor=non_linear(8), loss=dict(type='CosineSimilarityLoss'))
    check_equal_to(*reference_loss('BYOL', head, non_linear(32), model, images), model, images)


def test_moco_v3_equals_that_of_mmpretrain():
    model, images = build_siamese('moco', batch_norm=True), views(side=32)
    head = dict(
        type='MoCoV3Head',
        predictor=non_linear(8),
        loss=dict(type='CrossEntropyLoss', loss_weight=2 * 0.5),
        temperature=0.5,
    )
    check_equal_to(*reference_loss('MoCoV3', head, non_linear(32), model, images), model, images)


def pair_losses(method, model):
    """Loss of one prediction and one target vector or, for MoCo v3, all targets of the batch, in plain formulas."""
    if method == 'byol':
        return lambda p, t, batch: -(p @ t) / p.norm() / t.norm()
    if method == 'moco':
        return lambda p, t, batch: cross_entropy(
            (torch.stack([normalize(key, dim=0) for key in batch[0]]) @ normalize(p, dim=0))[None] / 0.5,
            torch.tensor([batch[1]]),
        )
    center, temperature = torch.zeros(20, dtype=torch.float64), model.head.make_targets.temperature
    return lambda p, t, batch: -(((t - center) / temperature).softmax(0) * log_softmax(p / 0.1, 0)).sum()


def slow_losses(method, model, images, directions='both', space='global'):
    """Global and local term by one loop over pairs of views, images and cells."""
    shared = model.local_head.projector is None
    networks = dict(
        student=(model.backbone, model.neck, model.head.predictor),
        teacher=(model.teacher['backbone'], model.teacher['neck'], None),
        student_local=(None, model.neck if shared else model.local_head.projector,
                       model.head.predictor if shared else model.local_head.predictor),
        teacher_local=(None, model.teacher['local_projector' if 'local_projector' in model.teacher else 'neck'], None),
    )  # fmt: skip

    def heads(name, rows):
        _, neck, predictor = networks[name]
        rows = neck((rows,))[0]
        return rows if predictor is None else predictor((rows,))[0]

    def encode(name, view):
        return split_features(networks[name][0](view))

    pair_loss = pair_losses(method, model)
    globals_, locals_ = [], []
    for a, b in ((0, 1), (1, 0)):
        vector, cells = encode('student', images[a])
        target_vector, target_cells = encode('teacher', images[b])
        p, t = heads('student', vector), heads('teacher', target_vector).detach()
        p_cells = torch.stack([heads('student_local', cells[:, i]) for i in range(cells.shape[1])], 1)
        t_cells = torch.stack([heads('teacher_local', target_cells[:, i]) for i in range(cells.shape[1])], 1).detach()
        p_partner = p if space == 'global' else heads('student_local', vector)
        t_partner = t if space == 'global' else heads('teacher_local', target_vector).detach()
        for image in range(len(images[a])):
            globals_.append(pair_loss(p[image], t[image], (t, image)))
            for i in range(cells.shape[1]):
                if directions != 'global_to_local':
                    locals_.append(pair_loss(p_cells[image, i], t_partner[image], (t_partner, image)))
                if directions != 'local_to_global':
                    locals_.append(pair_loss(p_partner[image], t_cells[image, i], (t_cells[:, i], image)))
    weight = model.head.loss_weight
    return weight * torch.stack(globals_).mean(), weight * torch.stack(locals_).mean()


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(
    ('local', 'shared'),
    [
        (dict(), False),
        (dict(directions='local_to_global', combination='additive', weight=0.7), False),
        (dict(space='own'), False),
        (dict(directions='global_to_local', space='own'), False),
        (dict(), True),
    ],
)
def test_losses_and_gradients_equal_loops_in_double_precision(method, local, shared):
    model = build_siamese(method, local=local).double()
    if shared:
        config = siamese_config(method)
        model = MODELS.build(dict(config, local_head=dict(type='LocalGlobalHead', **local))).double()
    images = [view.double() for view in views(3)]
    global_loss, local_loss = slow_losses(
        method, model, images, local.get('directions', 'both'), local.get('space', 'global')
    )
    losses = model.loss(images)
    w = local.get('weight', 0.3)
    base = 1.0 if local.get('combination') == 'additive' else 1 - w
    torch.testing.assert_close(losses['loss_global'], base * global_loss)
    torch.testing.assert_close(losses['loss_local'], w * local_loss)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(objective(losses), parameters, allow_unused=True)
    theirs = torch.autograd.grad(base * global_loss + w * local_loss, parameters, allow_unused=True)
    for gradient, expected in zip(ours, theirs, strict=True):
        assert (gradient is None) == (expected is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, expected)


# The local head


def train_steps(model, num_steps=3, batch_norm=False):
    """Losses of some steps with accumulation, and the state of the global generator afterwards."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for step in range(num_steps):
        loss = objective(model.loss(views(seed=step, side=32 if batch_norm else 16)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.9)
        losses.append(loss.item())
    return losses, torch.get_rng_state()


@pytest.mark.parametrize('method', METHODS)
def test_weight_zero_is_the_base_to_the_last_bit(method):
    runs = [build_siamese(method, batch_norm=True, local=local) for local in (None, dict(weight=0), dict(weight=0.3))]
    states = [{name: value.clone() for name, value in model.state_dict().items()} for model in runs[:2]]
    (base, random), (zero, zero_random), (positive, _) = [train_steps(model, batch_norm=True) for model in runs]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert base == zero
    assert base != positive
    assert torch.equal(random, zero_random)
    assert all(torch.equal(value, runs[1].state_dict()[name]) for name, value in runs[0].state_dict().items())


def test_local_head_draws_nothing_from_the_global_generator():
    model = build_siamese('byol', local=dict(num_cells=4))
    state = torch.get_rng_state()
    model.loss(views())
    assert torch.equal(state, torch.get_rng_state())


class ConvolutionalNeck(nn.Module):
    """The local projector of the paper, written as 1x1 convolutions with BatchNorm over the map."""

    def __init__(self, neck):
        super().__init__()
        self.first = nn.Conv2d(neck.fc0.in_features, neck.fc0.out_features, 1)
        self.norm = nn.BatchNorm2d(neck.fc0.out_features)
        self.second = nn.Conv2d(neck.fc1.in_features, neck.fc1.out_features, 1, bias=False)
        for conv, linear in ((self.first, neck.fc0), (self.second, neck.fc1)):
            conv.weight.data = linear.weight.data[:, :, None, None].clone()
        self.first.bias.data = neck.fc0.bias.data.clone()
        self.norm.load_state_dict(neck.bn0.state_dict())

    def forward(self, feature_map):
        return self.second(self.norm(self.first(feature_map)).relu())


def test_local_networks_are_1x1_convolutions():
    head = build_siamese('byol', batch_norm=True, local=dict()).local_head
    convolutions = ConvolutionalNeck(head.projector)
    feature_map = torch.randn(3, 32, 4, 5)
    expected = convolutions(feature_map)
    rows = feature_map.flatten(2).transpose(1, 2)
    ours = head.projector((rows.flatten(0, 1),))[0].unflatten(0, rows.shape[:2])
    torch.testing.assert_close(ours, expected.flatten(2).transpose(1, 2))
    torch.testing.assert_close(head.projector.bn0.running_var, convolutions.norm.running_var)
    expected.square().sum().backward()
    ours.square().sum().backward()
    torch.testing.assert_close(
        head.projector.fc0.weight.grad, convolutions.first.weight.grad[:, :, 0, 0], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize('method', METHODS)
def test_on_a_map_of_one_cell_local_and_global_heads_agree(method):
    model = build_siamese(method, batch_norm=True, local=dict(weight=0.5))
    model.local_head.projector.load_state_dict(model.neck.state_dict())
    model.teacher['local_projector'].load_state_dict(model.teacher['neck'].state_dict())
    if model.local_head.predictor is not None:
        model.local_head.predictor.load_state_dict(model.head.predictor.state_dict())
    losses = model.loss(views(side=8))
    torch.testing.assert_close(losses['loss_local'], losses['loss_global'])


def test_order_of_the_cells_does_not_matter():
    model = build_siamese('byol', local=dict(num_cells=None))
    images = views()
    before = model.loss(images)['loss_local']
    select, order = model.local_head._select, torch.randperm(16)
    model.local_head._select = lambda maps: [cells[:, order] for cells in select(maps)]
    torch.testing.assert_close(model.loss(images)['loss_local'], before)


def test_cosines_are_bounded_and_minus_one_for_equal_views_and_heads():
    model = build_siamese('byol', local=dict(weight=0.5, num_cells=None))
    head = model.head
    for _ in range(5):
        values = head.pair_loss(torch.randn(4, 9, 8), torch.randn(4, 8))
        assert -1 <= values <= 1
    same = torch.randn(4, 8)
    torch.testing.assert_close(head.pair_loss(same[:, None].expand(-1, 9, -1), same), torch.tensor(-1.0))
    torch.testing.assert_close(head.pair_loss(same, 2 * same), torch.tensor(-1.0))


@pytest.mark.parametrize('method', METHODS)
def test_gradient_reaches_every_parameter_of_the_student_and_none_of_the_teacher(method):
    model = build_siamese(method, local=dict())
    objective(model.loss(views())).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    missing = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not missing, missing
    before = model.teacher['local_projector'].state_dict()
    before = {name: value.clone() for name, value in before.items()}
    model.update_teacher(0.9)
    after = model.teacher['local_projector'].state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_directions_use_what_they_need():
    reverse = build_siamese('byol', local=dict(directions='global_to_local'))
    objective(reverse.loss(views())).backward()
    assert all(parameter.grad is None for parameter in reverse.local_head.parameters())
    assert all(p.grad is not None for p in reverse.parameters() if p.requires_grad)
    forward = build_siamese('byol', local=dict(directions='local_to_global'))
    assert set(forward.teacher) == {'backbone', 'neck'}
    own = build_siamese('byol', local=dict(directions='global_to_local', space='own'))
    objective(own.loss(views())).backward()
    assert all(p.grad is not None for p in own.parameters() if p.requires_grad)


def test_cells_of_student_and_teacher_are_drawn_apart_and_again_in_each_step():
    model = build_siamese('byol', local=dict(num_cells=4, selection='uniform'))
    maps = [torch.arange(256.0).view(1, 1, 16, 16)]
    drawn = [tuple(model.local_head._select(maps)[0].flatten().tolist()) for _ in range(6)]
    assert len(set(drawn)) == 6
    model.eval()
    fixed = [model.local_head._select(maps)[0].flatten().tolist() for _ in range(2)]
    assert fixed[0] == fixed[1] == [0.0, 8.0, 128.0, 136.0]


def test_selected_cells_are_cells_of_the_map():
    head = build_siamese('byol', local=dict(num_cells=9)).local_head
    maps = [torch.randn(2, 5, 8, 8), torch.randn(2, 5, 8, 8)]
    first, second = head._select(maps)
    assert first.shape == (2, 9, 5)
    for cells, feature_map in ((first, maps[0]), (second, maps[1])):
        rows = feature_map.flatten(2).transpose(1, 2)
        matches = (cells[:, :, None] == rows[:, None]).all(-1)
        assert matches.any(-1).all()
    assert torch.equal((first[0, :, None] == maps[0][0].flatten(1).T).all(-1),
                       (second[1, :, None] == maps[1][1].flatten(1).T).all(-1))  # fmt: skip


@pytest.mark.parametrize('method', METHODS)
def test_state_dict_round_trip_continues_identically(method, tmp_path):
    options = dict(local=dict(num_cells=4), batch_norm=True)
    model = build_siamese(method, **options)
    train_steps(model, 1, batch_norm=True)
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    twin = build_siamese(method, seed=5, **options)
    twin.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
    assert train_steps(model, 2, batch_norm=True)[0] == train_steps(twin, 2, batch_norm=True)[0]


@pytest.mark.parametrize('method', METHODS)
def test_diagnostics_stay_out_of_the_objective(method):
    model = build_siamese(method, local=dict(weight=0.25))
    total, log = model.parse_losses(model.loss(views()))
    torch.testing.assert_close(total, log['loss_global'] + log['loss_local'])
    diagnostics = {key for key in log if 'loss' not in key}
    assert diagnostics == {'key_cosine', 'embedding_std', 'redundancy', 'local_global_cosine'}
    assert not any(log[name].requires_grad for name in diagnostics)


def test_diagnostics_of_a_collapse():
    model = build_siamese('byol')
    for parameter in model.teacher['neck'].layers[-1].parameters():
        parameter.data.fill_(0.1)
    model.teacher['neck'].layers[-1].weight.data.zero_()
    losses = model.loss(views())
    assert losses['key_cosine'].item() == pytest.approx(1)
    assert losses['embedding_std'].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('method', METHODS)
def test_low_precision_gives_float32_losses(method):
    model = build_siamese(method, local=dict())
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.loss(views())
    assert all(value.dtype == torch.float32 for value in losses.values())
    exact = model.loss(views())
    torch.testing.assert_close(losses['loss_global'], exact['loss_global'], rtol=0.05, atol=0.05)


def test_crops_of_the_student_meet_both_targets():
    model = build_siamese('byol')
    images = views(num_crops=2)
    encodings = [split_features(model.backbone(view))[0] for view in images]
    predictions = [model.head.predictor(model.neck((vectors,)))[0] for vectors in encodings]
    targets = [model.teacher['neck']((split_features(model.teacher['backbone'](view))[0],))[0] for view in images[:2]]
    pairs = [model.head.pair_loss(p, t) for i, p in enumerate(predictions) for j, t in enumerate(targets) if i != j]
    assert len(pairs) == 6
    torch.testing.assert_close(model.loss(images)['loss_global'], 4 * sum(pairs) / 6)


def test_features_of_a_network_with_its_own_global_vector():
    backbone = dict(type='RFResNet', arch='rf29_r18', base_channels=4, stem_channels=4)
    model = MODELS.build(siamese_config('byol', backbone=backbone, neck=mlp(32), local=dict())
                         | dict(local_head=dict(type='LocalGlobalHead', projector=mlp(32))))  # fmt: skip
    model.eval()
    images = torch.randn(2, 3, 64, 64)
    vector, feature_map = model.extract_feat(images)
    expected_map, expected = model.teacher['backbone'](images)
    assert torch.equal(vector, expected) and torch.equal(feature_map, expected_map)
    model.train()
    losses = model.loss([torch.randn(4, 3, 64, 64)] * 2)
    objective(losses).backward()
    assert model.backbone.mlp.fc0.weight.grad.any()
    assert 'teacher.backbone.mlp.fc0.weight' in model.state_dict()


def one_step(rank, world_size, method):
    """Losses and gradients of two accumulated batches on this rank's part, and the state afterwards."""
    model = build_siamese(method, local=dict(num_cells=4))
    wrapped = model if world_size == 1 else DistributedDataParallel(model, broadcast_buffers=False)
    totals = []
    for seed in range(2):
        torch.manual_seed(17 * rank)
        batch = [view[rank::world_size] for view in views(8, seed=seed)]
        loss = objective(wrapped(batch, None, mode='loss'))
        loss.backward()
        totals.append(loss.item())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return totals, gradients, dict(model.named_buffers())


@pytest.mark.parametrize('method', METHODS)
def test_two_processes_with_half_the_batch_are_one_process_with_the_whole(method):
    single = one_step(0, 1, method)
    ranks = run_distributed(one_step, method)
    for step in range(2):
        assert sum(rank[0][step] for rank in ranks) / 2 == pytest.approx(single[0][step], rel=1e-5)
    for name, gradient in single[1].items():
        torch.testing.assert_close(ranks[0][1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    for name, buffer in single[2].items():
        for rank in ranks:
            torch.testing.assert_close(rank[2][name], buffer, msg=name)


@pytest.mark.parametrize(
    ('local', 'message'),
    [
        (dict(directions='none'), "directions must be one of both, .*, got 'none'"),
        (dict(space='other'), 'space must be one of global, own'),
        (dict(selection='first'), 'selection must be one of grid, uniform'),
        (dict(weight=1.5), r'weight must be in \(0, 1\]'),
        (dict(weight=-1, combination='additive'), 'weight must be'),
        (dict(num_cells=50), 'a grid needs a square num_cells, got 50'),
        (dict(num_cells=0), 'num_cells must be at least 1'),
        (dict(projector=None, predictor=mlp(8)), 'a shared head .* has no predictor of its own'),
        (dict(projector=None, predictor=None, space='own'), "no space='own'"),
    ],
)
def test_refuses_settings_that_cannot_work(local, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build({**dict(type='LocalGlobalHead', projector=mlp(16)), **local})


def test_refuses_necks_that_pool_and_single_views():
    with pytest.raises(ValueError, match='set with_avg_pool=False'):
        MODELS.build(siamese_config('byol', neck=dict(non_linear(16), with_avg_pool=True), backbone=VIT))
    with pytest.raises(ValueError, match='set with_avg_pool=False'):
        head = dict(type='BYOLHead', predictor=dict(non_linear(8), with_avg_pool=True))
        MODELS.build(siamese_config('byol', head=head))
    with pytest.raises(ValueError, match='begins with two global views of one size'):
        build_siamese('byol').loss(views()[:1])
    with pytest.raises(ValueError, match='temperature > 0 and cells_per_chunk >= 1, got 0.5 and 0'):
        MODELS.build(dict(type='InfoNCEHead', predictor=mlp(8), temperature=0.5, cells_per_chunk=0))
