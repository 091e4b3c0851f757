"""Training on a GPU: the numbers of the CPU, no waiting, and bit-equal resumption."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from testing import siamese_models, sop_models
from testing.toy_training import differences, interrupt, state_of, train

METHODS = ('sop', 'byol', 'moco', 'dino', 'co-byol', 'co-moco', 'co-dino')


def build(name):
    """A small model and the arguments of its loss, on the CPU."""
    if name == 'sop':
        views, samples = sop_models.batch()
        return sop_models.build_sop(), views, samples
    local = dict(num_cells=4) if name.startswith('co-') else None
    return siamese_models.build_siamese(name.removeprefix('co-'), local=local), siamese_models.views(), None


def losses_and_gradients(model, views, samples, device):
    torch.manual_seed(0)
    model = copy.deepcopy(model).to(device)
    losses = model.loss([view.to(device) for view in views], samples)
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    gradients = {name: each.grad.cpu() for name, each in model.named_parameters() if each.grad is not None}
    return {name: value.detach().cpu() for name, value in losses.items() if 'loss' in name}, gradients


# The draws of anchors and cells differ between devices.
@pytest.mark.parametrize('name', ['byol', 'moco', 'dino'])
def test_losses_and_gradients_equal_those_of_the_cpu(name):
    model, views, samples = build(name)
    with torch.backends.cudnn.flags(allow_tf32=False):
        expected, found = (losses_and_gradients(model, views, samples, device) for device in ('cpu', 'cuda'))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('name', METHODS)
def test_a_step_is_finite_and_never_waits(name, dtype):
    model, views, samples = build(name)
    model = model.cuda()
    config = dict(
        type='PretrainOptimWrapper',
        constructor='PretrainOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1e-3),
        clip=dict(type='per_tensor'),
        dtype=dtype,
        check_finite_interval=0,
    )
    wrapper = build_optim_wrapper(model, config)
    views = [view.cuda() for view in views]

    def step():
        with wrapper.optim_context(model):
            losses = model.loss(views, samples)
        total = sum(value for name, value in losses.items() if 'loss' in name)
        wrapper.update_params(total)
        model.update_teacher(0.99)
        return total.detach()

    # Seeds and counters are read once.
    step()
    torch.cuda.set_sync_debug_mode('error')
    try:
        total = step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert total.isfinite()


def test_resumption_is_bit_equal(tmp_path):
    """Dropout, accumulation and the learning rate's schedule continue in the middle of an epoch."""
    straight = train(tmp_path / 'straight')
    interrupt(tmp_path / 'resumed', 10)
    resumed = train(tmp_path / 'resumed', resume=True)
    assert next(resumed.model.parameters()).is_cuda
    assert differences(state_of(resumed), state_of(straight)) == []
