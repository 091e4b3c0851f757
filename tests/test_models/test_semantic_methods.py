"""Methods with weighted semantic positives: MMPretrain's when nothing is weighed, and slow formulas otherwise."""

import copy

import pytest
import torch
from mmengine.logging import MessageHub
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from testing.distributed import run_distributed
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

CONVOLUTION = dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4, strides=(2, 2, 2, 2))


@MODELS.register_module()
class LinearPixels(nn.Module):
    """Pixels times a matrix, as a map; no BatchNorm, so that halves of a batch add up to the whole."""

    def __init__(self, pixels=48, channels=32):
        super().__init__()
        self.linear = nn.Linear(pixels, channels)

    def forward(self, images):
        return (self.linear(images.flatten(1))[..., None, None].tanh(),)


def make_config(method, backbone=CONVOLUTION, **changes):
    neck = dict(type='NonLinearNeck', in_channels=32, hid_channels=16, out_channels=8, num_layers=2)
    flat = dict(type='MoCoV2Neck', in_channels=32, hid_channels=16, out_channels=8)
    if backbone is not CONVOLUTION or method.endswith('MoCo'):
        neck = flat
    config = dict(type=method, backbone=backbone, neck=neck)
    weighted = 'Weighted' if method.startswith('Semantic') else ''
    if method.endswith(('MoCo', 'SimCLR')):
        loss = dict(type='CrossEntropyLoss')
        config['head'] = dict(type=f'{weighted}ContrastiveHead', loss=loss, temperature=0.2)
    else:
        predictor = dict(type='MoCoV2Neck', in_channels=8, hid_channels=16, out_channels=8, with_avg_pool=False)
        loss = dict(type='CosineSimilarityLoss')
        config['head'] = dict(type=f'{weighted}LatentPredictHead', loss=loss, predictor=predictor)
    if method.endswith('MoCo'):
        config.update(queue_len=16, feat_dim=8, momentum=0.1)
    return dict(config, **changes)


def build(method, backbone=CONVOLUTION, **changes):
    MessageHub.get_instance('test').update_info('max_iters', 10)
    torch.manual_seed(0)
    return MODELS.build(copy.deepcopy(make_config(method, backbone, **changes))).train()


def make_samples(ids, partners=None):
    samples = []
    for first, second in ids:
        partner_ids = torch.full((2, 2), -1)
        for row, image in enumerate((first, second)):
            own = (partners or {}).get(image, ())
            partner_ids[row, : len(own)] = torch.tensor(own)
        sample = DataSample()
        sample.set_metainfo(
            dict(image_ids=(first, second), is_semantic=first != second, partner_ids=partner_ids.numpy())
        )
        samples.append(sample)
    return samples


def random_views(count=2, batch=4, side=4, seed=1):
    return list(torch.randn(count, batch, 3, side, side, generator=torch.Generator().manual_seed(seed)))


def train_steps(model, samples, steps=3, num_views=2, dtype=None):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    torch.manual_seed(2)
    for step in range(steps):
        loss = model.loss(random_views(num_views, len(samples), 16, seed=step), samples)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item(), model.state_dict()


METHODS = ('MoCo', 'SimCLR', 'SimSiam', 'BYOL')
PAIRED = make_samples([(0, 0), (1, 2), (2, 2), (3, 5)], {1: (2,), 2: (1,), 3: (5,), 5: (3,)})


@pytest.mark.parametrize('method', METHODS)
def test_is_the_base_method_without_weights(method):
    loss, state = train_steps(build(method), [DataSample()] * 4)
    own_loss, own_state = train_steps(build(f'Semantic{method}'), PAIRED)
    assert own_loss == loss
    assert own_state.keys() == state.keys()
    assert [name for name in state if not torch.equal(state[name], own_state[name])] == []


@pytest.mark.parametrize('method', ['MoCo', 'SimCLR'])
def test_masking_nothing_is_the_base_method(method):
    samples = make_samples([(index, index) for index in range(4)])
    loss, _ = train_steps(build(method), [DataSample()] * 4, steps=1)
    # Each image's other view is its positive, and the queue holds no known image yet.
    masked, _ = train_steps(build(f'Semantic{method}', mask_known_positives=True), samples, steps=1)
    assert masked == loss


@pytest.mark.parametrize('method', METHODS)
def test_weight_is_linear_and_divided_by_the_batch(method):
    losses = {}
    for weight in (0.0, 0.5, 1.0, 2.0):
        model = build(f'Semantic{method}', semantic_weight=weight)
        torch.manual_seed(3)
        losses[weight] = model.loss(random_views(side=16), PAIRED)['loss'].item()
    slope = losses[1.0] - losses[0.0]
    assert slope != 0
    assert losses[0.5] == pytest.approx(losses[0.0] + 0.5 * slope, abs=1e-5)
    assert losses[2.0] == pytest.approx(losses[0.0] + 2 * slope, abs=1e-5)


@pytest.mark.parametrize('method', METHODS)
def test_weight_zero_gives_semantic_samples_no_gradient_as_anchors(method):
    views = [view.requires_grad_() for view in random_views()]
    model = build(f'Semantic{method}', dict(type='LinearPixels'), semantic_weight=0.0)
    torch.manual_seed(3)
    model.loss(views, PAIRED)['loss'].backward()
    semantic = views[0].grad[[1, 3]].abs().sum()
    assert views[0].grad[[0, 2]].abs().sum() > 0
    # In SimCLR a sample is still a negative of others.
    assert (semantic > 0) == (method == 'SimCLR')


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def slow_moco(model, views, samples, weight, mask, id_queue):
    """SePP's MoCo loss sample by sample, in fp64."""
    project = nn.Sequential(model.backbone, model.neck)
    key_net = copy.deepcopy(model.encoder_k.module)
    query = unit(project(views[0])[0])
    total = 0
    for number, sample in enumerate(samples):
        positives = [(1, weight if sample.is_semantic else 1.0)]
        if len(views) == 3:
            positives = [(1, 1.0), (2, weight * sample.is_semantic)]
        known = {sample.image_ids[0], *sample.partner_ids[0].tolist()} - {-1}
        negatives = 0
        for column in range(model.queue_len):
            if not (mask and int(id_queue[column]) in known):
                negatives = negatives + (query[number] @ model.queue[:, column] / 0.2).exp()
        for view, factor in positives:
            key = unit(key_net(views[view])[0])[number]
            positive = (query[number] @ key.detach() / 0.2).exp()
            total = total - factor * (positive / (positive + negatives)).log()
    return total / len(samples)


def slow_simclr(model, views, samples, weight, mask):
    """SePP's NT-Xent loss sample by sample, in fp64."""
    everything = unit(nn.Sequential(model.backbone, model.neck)(torch.cat(views))[0]).view(len(views), len(samples), -1)
    terms = [(1, (0, 1), [weight if sample.is_semantic else 1.0 for sample in samples])]
    if len(views) == 3:
        terms = [(1, (0, 0), [1.0] * len(samples)), (2, (0, 1), [weight * sample.is_semantic for sample in samples])]
    total = 0
    for view, images, weights in terms:
        items = [
            (number, side, everything[(0, view)[side]][number], sample.image_ids[images[side]], sample.partner_ids)
            for number, sample in enumerate(samples)
            for side in (0, 1)
        ]
        for number, side, embedding, image, partners in items:
            known = {image, *partners[images[side]].tolist()} - {-1}
            denominator = 0
            for other, other_side, other_embedding, other_image, _ in items:
                if (other, other_side) == (number, side):
                    continue
                value = (embedding @ other_embedding / 0.2).exp()
                if other == number:
                    positive = value
                elif mask and other_image in known:
                    continue
                denominator = denominator + value
            total = total - weights[number] * (positive / denominator).log()
    return total / (2 * len(samples))


def slow_siamese(model, views, samples, weight, targets, factor):
    projections = [nn.Sequential(model.backbone, model.neck)(view)[0] for view in views]
    terms = [(1, [weight if sample.is_semantic else 1.0 for sample in samples])]
    if len(views) == 3:
        terms = [(1, [1.0] * len(samples)), (2, [weight * sample.is_semantic for sample in samples])]
    total = 0
    for view, weights in terms:
        for first, second in ((0, view), (view, 0)):
            prediction = unit(model.head.predictor([projections[first]])[0])
            target = unit(targets(views[second])[0].detach())
            for number, factor_of_sample in enumerate(weights):
                total = total - factor_of_sample * prediction[number] @ target[number]
    return factor * total / len(samples)


ORACLE_SAMPLES = make_samples([(0, 0), (0, 0), (1, 2), (2, 2), (3, 5), (1, 1)], {1: (2,), 2: (1,), 3: (5,), 5: (3,)})


def gradient_of(loss, model):
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize('num_views', [2, 3])
@pytest.mark.parametrize(('method', 'mask'), [*((name, False) for name in METHODS), ('MoCo', True), ('SimCLR', True)])
def test_equals_the_loops(method, mask, num_views):
    options = dict(mask_known_positives=True) if mask else {}
    if method == 'MoCo':
        options['queue_len'] = 12
    model = build(f'Semantic{method}', dict(type='LinearPixels'), semantic_weight=0.3, **options)
    views, id_queue = random_views(num_views, 6), torch.tensor([0, 1, 2, 3, 5, -1, 9, 2, 1, 0, 5, 3])
    if method == 'MoCo' and mask:
        model.id_queue.copy_(id_queue)
    reference = copy.deepcopy(model).double()
    doubles = [view.double() for view in views]
    if method == 'MoCo':
        expected = slow_moco(reference, doubles, ORACLE_SAMPLES, 0.3, mask, id_queue)
    elif method == 'SimCLR':
        expected = slow_simclr(reference, doubles, ORACLE_SAMPLES, 0.3, mask)
    else:
        targets = nn.Sequential(reference.backbone, reference.neck)
        factor = 0.5 if method == 'SimSiam' else 2.0
        expected = slow_siamese(reference, doubles, ORACLE_SAMPLES, 0.3, targets, factor)
    gradients = gradient_of(expected, reference)
    loss = model.loss(views, ORACLE_SAMPLES)['loss']
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, value in gradient_of(loss, model).items():
        torch.testing.assert_close(value.double(), gradients[name], rtol=1e-4, atol=1e-6)


def test_queue_of_ids_follows_that_of_keys():
    model = build('SemanticMoCo', mask_known_positives=True, queue_len=8)
    seen = []
    for step, ids in enumerate([[(0, 1), (2, 2), (3, 3), (4, 0)], [(5, 5), (6, 6), (7, 1), (1, 7)], [(8, 9)] * 4]):
        model.loss(random_views(side=16, seed=step), make_samples(ids))
        seen.append(model.id_queue.tolist())
    assert seen == [[1, 2, 3, 0, -1, -1, -1, -1], [1, 2, 3, 0, 5, 6, 1, 7], [9, 9, 9, 9, 5, 6, 1, 7]]


def test_joint_queues_the_ordinary_keys():
    model = build('SemanticMoCo', mask_known_positives=True, queue_len=8)
    model.loss(random_views(3, side=16), make_samples([(0, 1), (2, 3), (4, 4), (5, 5)]))
    assert model.id_queue[:4].tolist() == [0, 2, 4, 5]
    assert int(model.encoder_k.steps) == 1


@pytest.mark.parametrize('method', METHODS)
def test_loss_is_fp32_under_autocast(method):
    model = build(f'Semantic{method}', semantic_weight=0.5)
    with torch.autocast('cpu', torch.bfloat16):
        values = model.loss(random_views(side=16), PAIRED)
    assert {value.dtype for value in values.values()} == {torch.float32}
    assert values['loss'].isfinite()
    values['loss'].backward()


@pytest.mark.parametrize('method', METHODS)
def test_state_goes_on_where_it_stopped(method):
    options = dict(mask_known_positives=True) if method in ('MoCo', 'SimCLR') else {}
    first = build(f'Semantic{method}', **options)
    train_steps(first, PAIRED)
    second = build(f'Semantic{method}', **options)
    second.load_state_dict(first.state_dict())
    results = [train_steps(model, PAIRED, steps=2) for model in (first, second)]
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


class NoWaits(TorchDispatchMode):
    """Refuses what would make the host wait for a device: reading a value, and shapes that depend on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default)
        if func in (aten.index.Tensor, aten.index_put_.default):
            assert all(index is None or index.dtype == torch.int64 for index in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('num_views', [2, 3])
def test_a_step_reads_nothing_from_the_device(method, num_views):
    options = dict(mask_known_positives=True) if method in ('MoCo', 'SimCLR') else {}
    model = build(f'Semantic{method}', semantic_weight=0.5, **options)
    views = random_views(num_views, side=16)
    model.loss(views, PAIRED)
    # The samples are on the host: reading them does not wait.
    terms, ids = model.positive_terms(views, PAIRED), model.read_ids(PAIRED, views[0].device)
    model.positive_terms, model.read_ids = lambda *args: terms, lambda *args: ids
    with NoWaits():
        model.loss(views, PAIRED)['loss'].backward()


def test_bad_input_is_explained():
    with pytest.raises(ValueError, match='must not be negative, got -1'):
        build('SemanticSimSiam', semantic_weight=-1)
    with pytest.raises(ValueError, match='needs two views'):
        build('SemanticSimCLR').loss(random_views(4), PAIRED)
    for method, options in [
        ('SemanticBYOL', dict(semantic_weight=2)),
        ('SemanticMoCo', dict(mask_known_positives=True)),
    ]:
        with pytest.raises(ValueError, match='SemanticPairDataset'):
            build(method, **options).loss(random_views(side=16), [DataSample()] * 4)
    with pytest.raises(ValueError, match='queue_len=16 of SemanticMoCo must be a multiple of the global batch of 3'):
        build('SemanticMoCo').loss(random_views(batch=3, side=16), PAIRED[:3])


def gradients_of_rank(rank, world_size, method, options):
    """Loss and gradients as DistributedDataParallel would average them."""
    torch.manual_seed(0)
    model = build(f'Semantic{method}', dict(type='LinearPixels'), semantic_weight=0.3, **options)
    own = slice(rank, None, world_size)
    losses, state = [], None
    for step in range(2):
        views = [view[own] for view in random_views(2, 4, seed=step)]
        values = model.loss(views, PAIRED[own])
        losses.append(values['loss'].detach())
    gradients = list(gradient_of(values['loss'], model).values())
    for tensor in [*losses, *gradients]:
        torch.distributed.all_reduce(tensor)
        tensor /= world_size
    state = model.state_dict()
    return (
        torch.stack(losses).tolist(),
        [gradient.tolist() for gradient in gradients],
        {name: state[name].tolist() for name in ('queue', 'id_queue') if name in state},
    )


@pytest.mark.parametrize(('method', 'mask'), [*((name, False) for name in METHODS), ('MoCo', True), ('SimCLR', True)])
def test_two_processes_are_one(method, mask):
    options = dict(mask_known_positives=True) if mask else {}
    one = run_distributed(gradients_of_rank, method, options, world_size=1)[0]
    two = run_distributed(gradients_of_rank, method, options, world_size=2)
    for losses, gradients, state in two:
        assert losses == pytest.approx(one[0], rel=1e-5)
        for value, expected in zip(gradients, one[1], strict=True):
            torch.testing.assert_close(torch.tensor(value), torch.tensor(expected), rtol=1e-4, atol=1e-6)
        assert state.keys() == one[2].keys()
        if mask and method == 'MoCo':
            # Ranks hold every second sample and follow each other in the queue.
            order = [0, 2, 1, 3]
            expected = [one[2]['id_queue'][start + place] for start in (0, 4) for place in order]
            assert state['id_queue'][:8] == expected
    assert two[0][2] == two[1][2]
