import copy
import math

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from torch import nn

from mm_sop.engine.optimizers import NonFiniteLossError, PretrainOptimWrapper
from mm_sop.engine.optimizers.constructors import parameter_groups
from mm_sop.engine.optimizers.pretrain_optim_wrapper import clip_global_norm, clip_per_tensor


def make_grads():
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,), (2, 2, 2), (1,)]
    return [
        scale * torch.randn(shape, generator=generator) for shape, scale in zip(shapes, (0.1, 10, 3, 1), strict=True)
    ]


def test_clip_per_tensor_equals_the_loop():
    grads, expected = make_grads(), []
    for grad in make_grads():
        norm = math.sqrt(sum(float(value) ** 2 for value in grad.flatten()))
        expected.append(grad * min(1.0, 3.0 / (norm + 1e-6)))
    total = clip_per_tensor(grads, 3.0)
    torch.testing.assert_close(grads, expected)
    assert grads[0].equal(make_grads()[0]), 'small gradients must not change'
    assert float(total) == pytest.approx(math.sqrt(sum(float(grad.square().sum()) for grad in make_grads())), rel=1e-6)


@pytest.mark.parametrize('max_norm', [3.0, 1e4])
def test_clip_global_norm_equals_torch(max_norm):
    grads = make_grads()
    parameters = [nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for parameter, grad in zip(parameters, make_grads(), strict=True):
        parameter.grad = grad
    expected = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    torch.testing.assert_close(clip_global_norm(grads, max_norm), expected)
    torch.testing.assert_close(grads, [parameter.grad for parameter in parameters])


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.mask_token = nn.Parameter(torch.zeros(1, 4))
        self.gamma = nn.Parameter(torch.ones(4))
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_tokens_and_weights_decay_but_biases_and_vectors_do_not():
    network = Network()
    names = {parameter: name for name, parameter in network.named_parameters()}
    decaying, others = parameter_groups(network)
    assert [names[parameter] for parameter in decaying['params']] == ['cls_token', 'mask_token', 'linear.weight']
    assert {names[parameter] for parameter in others['params']} == {'gamma', 'linear.bias', 'norm.weight', 'norm.bias'}
    assert 'weight_decay' not in decaying
    assert others['weight_decay'] == 0


def test_constructor_builds_fused_groups_without_the_teacher():
    model = MODELS.build(dict(type='ToyMethod'))
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='PretrainOptimWrapper',
            constructor='PretrainOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.04),
        ),
    )
    groups = wrapper.optimizer.param_groups
    assert [group['weight_decay'] for group in groups] == [0.04, 0.0]
    assert sum(len(group['params']) for group in groups) == 5
    assert all(group['fused'] for group in groups)


def test_constructor_refuses_rules_that_it_would_ignore():
    config = dict(
        constructor='PretrainOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1.0),
        paramwise_cfg=dict(bias_decay_mult=0),
    )
    with pytest.raises(ValueError, match='takes no paramwise_cfg'):
        build_optim_wrapper(nn.Linear(2, 2), config)


def make_wrapper(model, **options):
    return PretrainOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(dtype='half'), 'dtype must be one of float32, bfloat16, float16'),
        (dict(clip=dict(type='norm', max_norm=1.0)), "'per_tensor' | 'global_norm'"),
        (dict(clip=dict(max_norm=0)), 'max_norm > 0'),
        (dict(clip=dict(max_norm=1.0, norm_type=2)), 'optim_wrapper.clip must be'),
        (dict(accumulative_counts=0), 'at least 1, got 0'),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message.replace('|', r'\|')):
        make_wrapper(nn.Linear(2, 2), **options)


def test_float16_needs_cuda(monkeypatch):
    monkeypatch.setattr('mm_sop.engine.optimizers.pretrain_optim_wrapper.get_device', lambda: 'cpu')
    with pytest.raises(ValueError, match="float16' needs a CUDA device"):
        make_wrapper(nn.Linear(2, 2), dtype='float16')


def test_bfloat16_works_on_cpu_and_keeps_parameters_in_float32(monkeypatch):
    monkeypatch.setattr('mm_sop.engine.optimizers.pretrain_optim_wrapper.get_device', lambda: 'cpu')
    model = nn.Linear(4, 4)
    wrapper = make_wrapper(model, dtype='bfloat16')
    with wrapper.optim_context(model):
        outputs = model(torch.ones(2, 4))
    assert outputs.dtype is torch.bfloat16
    wrapper.update_params(outputs.float().square().mean())
    assert model.weight.dtype is torch.float32


@pytest.mark.parametrize('clip', [None, dict(type='per_tensor', max_norm=0.1), dict(type='global_norm', max_norm=0.1)])
@pytest.mark.parametrize('num_batches', [3, 4])
def test_accumulation_equals_large_batches(clip, num_batches):
    """Batches of two against steps on the joined batches, with an incomplete last step."""
    inputs = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model, reference = nn.Linear(4, 1), nn.Linear(4, 1)
    reference.load_state_dict(model.state_dict())
    wrapper = make_wrapper(model, accumulative_counts=num_batches, clip=clip)
    wrapper.initialize_count_status(model, 0, 5)
    for batch in inputs:
        wrapper.update_params(model(batch).square().mean())
    plain = make_wrapper(reference, clip=clip)
    for batches in inputs.split(num_batches):
        plain.update_params(reference(batches.flatten(0, 1)).square().mean())
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=1e-6, atol=1e-7)


def test_gradient_norm_is_there_only_after_a_step():
    model = nn.Linear(2, 1, bias=False)
    wrapper = make_wrapper(model, accumulative_counts=2, clip=dict(max_norm=1.0))
    wrapper.update_params(model(torch.tensor([[3.0, 4.0]])).sum())
    assert wrapper.grad_norm is None
    wrapper.update_params(model(torch.tensor([[3.0, 4.0]])).sum())
    assert float(wrapper.grad_norm) == pytest.approx(5.0)


def test_non_finite_loss_stops_with_iteration_losses_and_advice():
    model = nn.Linear(1, 1)
    wrapper = make_wrapper(model, check_finite_interval=5)
    wrapper.message_hub.update_info('last_ckpt', 'work_dirs/iter_2.pth')
    for factor in (1.0, 1.0, math.nan, 1.0):
        wrapper.update_params((model.weight * 0).sum() + factor)
    with pytest.raises(NonFiniteLossError, match=r'iteration 3: the loss is not finite.*: 1, 1, nan\..*iter_2.pth'):
        wrapper.update_params(model.weight.sum())


def test_non_finite_gradients_stop_although_the_loss_is_finite():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    wrapper = make_wrapper(model, check_finite_interval=1, clip=dict(max_norm=1.0))
    with pytest.raises(NonFiniteLossError, match='gradient norm .* is not finite.*no checkpoint was saved'):
        wrapper.update_params(model.weight.sqrt().sum())


def test_state_survives_a_round_trip():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    wrapper = PretrainOptimWrapper(optimizer=torch.optim.AdamW(parameter_groups(model), lr=0.1, fused=True))
    wrapper.update_params(model(torch.ones(2, 4)).sum())
    twin = nn.Linear(4, 1)
    twin.load_state_dict(model.state_dict())
    restored = PretrainOptimWrapper(optimizer=torch.optim.AdamW(parameter_groups(twin), lr=0.5, fused=True))
    restored.load_state_dict(copy.deepcopy(wrapper.state_dict()))
    for network, steps in ((model, wrapper), (twin, restored)):
        steps.update_params(network(torch.ones(2, 4)).square().sum())
    assert model.weight.equal(twin.weight)
    assert model.bias.equal(twin.bias)
