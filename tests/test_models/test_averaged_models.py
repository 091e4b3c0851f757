"""Averaged models equal their parents bit for bit."""

import copy

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from mmpretrain.models.utils import CosineEMA
from torch import nn

from mm_sop.models.utils.averaged_models import FusedCosineEMA, FusedEMA


def change(model, seed):
    """Give every parameter and buffer another value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1 if value.dtype == torch.int64 else torch.randn(value.shape, generator=generator))


@pytest.mark.parametrize(('fused', 'parent'), [(FusedEMA, ExponentialMovingAverage), (FusedCosineEMA, CosineEMA)])
@pytest.mark.parametrize('options', [{}, dict(update_buffers=True), dict(interval=3)])
def test_equals_the_parent_also_after_loading(fused, parent, options):
    MessageHub.get_current_instance().update_info('max_iters', 7)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    averages = [kind(model, momentum=0.03, **options) for kind in (fused, parent)]
    assert averages[0].state_dict().keys() == averages[1].state_dict().keys()
    for step in range(7):
        change(model, step)
        for average in averages:
            average.update_parameters(model)
        if step == 3:
            # A new average takes up the number of steps of the loaded one; so does a copy.
            loaded = fused(copy.deepcopy(model), momentum=0.03, **options)
            loaded.load_state_dict(averages[1].state_dict())
            averages += [loaded, copy.deepcopy(averages[0])]
    expected = averages[1].state_dict()
    assert expected['steps'] == 7
    for average in averages:
        assert all(torch.equal(value, expected[name]) for name, value in average.state_dict().items())
