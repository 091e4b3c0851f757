"""Steps of all pretraining configs at their real size on a device that does not exist."""

import pytest
from testing.rehearsal import CONFIGS, faults_in, rehearse_config


@pytest.mark.parametrize('folder', ['sop', 'resa', 'sepp', 'dino', 'mocov2', 'simsiam', 'simclr', 'combinations'])
def test_steps_stay_on_the_device(process, folder):
    """No operation mixes devices, the host never waits, and all logged values stay on the device."""
    assert faults_in(folder, process) == {}


@pytest.mark.parametrize(
    ('config', 'options'),
    [
        ('sop/vits', {'activation_checkpointing': ['backbone.layers.*']}),
        ('sop/vits', {'optim_wrapper.accumulative_counts': 2, 'optim_wrapper.dtype': 'float32'}),
        ('dino/dino_r50', {'optim_wrapper.dtype': 'float16', 'optim_wrapper.clip': dict(type='global_norm')}),
        ('resa/resa_r18_composites', {'optim_wrapper.dtype': 'bfloat16', 'optim_wrapper.accumulative_counts': 2}),
    ],
    ids=['checkpointing', 'accumulation', 'float16', 'bfloat16'],
)
def test_options_keep_steps_on_the_device(process, config, options):
    assert process.submit(rehearse_config, CONFIGS / f'{config}.py', options).result() == []
