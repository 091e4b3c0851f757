"""Sharded training against DistributedDataParallel, in two processes."""

from pathlib import Path

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from testing.distributed import run_distributed
from testing.resa_models import resa_config
from testing.sop_models import build_sop, sop_config
from testing.sop_training import train_sop
from torch import nn

from mm_sop.engine.hooks.base import evaluating
from mm_sop.engine.sharding import shard_parameters, whole_model
from mm_sop.evaluation.features.extraction import encode_images
from mm_sop.utils.distributed import own_shards
from mm_sop.utils.modules import unwrap_model

# AdamW would make steps of full size out of the rounding errors of gradients that are zero, as those of the keys' bias.
SGD = {'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=0.3, momentum=0.9)}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)


RECOMPUTED = dict(compile_blocks=dict(backend='eager'), activation_checkpointing=['backbone.layers.*'])
JOINTLY = {'optim_wrapper.clip.type': 'global_norm'}
LARS = {'optim_wrapper.optimizer': dict(_delete_=True, type='FastLARS', lr=0.3, eta=0.1)}
DINO = dict(
    type='DINO',
    backbone=dict(sop_config()['backbone'], out_type='raw'),
    neck=dict(type='DINONeck', in_channels=32, hid_channels=8, bottleneck_channels=4, num_prototypes=8),
    head=dict(type='DINOHead', num_prototypes=8),
)
RESA = dict(model=resa_config(), custom_hooks=[dict(type='TeacherHook', momentum=0.9)])
SHARDED = dict(shard_parameters=True)
# Name of a training and whether it uses DDP or is sharded.
RUNS = {
    ('SOP', 'ddp'): {},
    ('SOP', 'ddp recomputed'): RECOMPUTED,
    ('SOP', 'sharded'): SHARDED,
    ('SOP', 'sharded recomputed'): dict(shard_parameters=dict(reshard_after_forward=False), **RECOMPUTED),
    ('jointly clipped', 'ddp'): JOINTLY,
    ('jointly clipped', 'sharded'): {**JOINTLY, **SHARDED},
    ('DINO with LARS', 'ddp'): dict(model=DINO, **LARS),
    ('DINO with LARS', 'sharded'): dict(model=DINO, **LARS, **SHARDED),
    ('ReSA', 'ddp'): RESA,
    ('ReSA', 'sharded'): {**RESA, **SHARDED},
}


def train(folder, **changes):
    """Train in this process of a group."""
    return train_sop(folder, 0.2, launcher='pytorch', batch_size=2, **changes)


def features_of(model):
    with evaluating(model), torch.no_grad():
        return encode_images(model, IMAGES)[0]


def checkpoint_of(folder):
    return torch.load(Path(folder, 'last_checkpoint').read_text(), weights_only=False)


def train_both_ways(rank, world_size, folder):
    """Features after training with DDP and sharded, and the fraction of the parameters that this process holds."""
    features = {}
    options = {**SGD, 'optim_wrapper.clip.max_norm': 0.3, 'train_cfg.max_epochs': 1}
    for (name, way), changes in RUNS.items():
        runner = train(f'{folder}/{name} {way}', **{**options, **changes})
        model, whole = unwrap_model(runner.model), whole_model(runner)
        parameters = [*model.parameters()]
        fraction = sum(map(torch.numel, own_shards(parameters))) / sum(map(torch.numel, parameters))
        features[name, way] = features_of(model)
        assert rank or encode_images(whole.eval(), IMAGES)[0].equal(features[name, way])
    return features, fraction


def test_sharded_training_equals_ddp(tmp_path):
    (features, fraction), (_, other_fraction) = run_distributed(train_both_ways, str(tmp_path))
    assert fraction < 0.6
    assert fraction + other_fraction == pytest.approx(1)
    for name, way in features:
        expected, state = (checkpoint_of(tmp_path / f'{name} {each}')['state_dict'] for each in ('ddp', way))
        torch.testing.assert_close(features[name, way], features[name, 'ddp'], rtol=1e-4, atol=1e-5)
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6, msg=lambda text, key=key: key + text)


def stop_and_resume(rank, world_size, folder):
    """Train sharded to the end, and in two parts of which none, one or the other is sharded."""
    train(f'{folder}/whole', **SGD, shard_parameters=True, experiment_name='whole')
    for first, second in ((True, True), (True, False), (False, True)):
        own = f'{folder}/{first}-{second}'
        with pytest.raises(SystemExit):
            train(own, **SGD, stop_at=9, shard_parameters=first, experiment_name=own)
        train(own, **SGD, resume=True, shard_parameters=second, experiment_name=f'{own} resumed')


@pytest.mark.parametrize(('name', 'bound'), [('True-True', 0), ('True-False', 1e-4), ('False-True', 1e-4)])
def test_resumed_shards(resumed_runs, name, bound):
    """Sharded runs resume bit-identically; their checkpoints are those of other runs."""
    expected, resumed = (checkpoint_of(resumed_runs / each) for each in ('whole', name))
    assert resumed['meta']['iter'] == expected['meta']['iter'] == 21
    torch.testing.assert_close(resumed['state_dict'], expected['state_dict'], rtol=0, atol=bound)
    torch.testing.assert_close(resumed['optimizer']['state'], expected['optimizer']['state'], rtol=0, atol=bound)


@pytest.fixture(scope='module')
def resumed_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    run_distributed(stop_and_resume, str(folder))
    return folder


def test_checkpoint_serves_one_process(resumed_runs):
    state = checkpoint_of(resumed_runs / 'whole')['state_dict']
    model = build_sop()
    model.load_state_dict(state)
    assert features_of(model).isfinite().all()


REFUSED = [
    (dict(shard_parameters=dict(pattern='neck.*.block')), "no module of the model is called 'neck.*.block'"),
    (dict(shard_parameters=dict(size=3)), 'unknown size; expected pattern, reshard_after_forward'),
    (dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel')), 'exclude each other'),
    ({'optim_wrapper.dtype': 'float16'}, 'no loss scaling'),
]


def refusals(rank, world_size, folder):
    messages = []
    for index, (changes, _) in enumerate(REFUSED):
        with pytest.raises(ValueError) as error:
            train(f'{folder}/{index}', **{'shard_parameters': True, **changes})
        messages.append(str(error.value))
    model = nn.Sequential(nn.Linear(2, 2), ExponentialMovingAverage(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match='Sequential updates its ExponentialMovingAverage within the forward pass'):
        shard_parameters(model, True)
    return messages


def test_refusals(tmp_path):
    messages, _ = run_distributed(refusals, str(tmp_path))
    for (_, expected), message in zip(REFUSED, messages, strict=True):
        assert expected in message
