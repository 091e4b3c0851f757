"""SOP in the real loop: resumption in the middle of an epoch, and two processes against one."""

import signal

import pytest
import torch
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample
from testing.distributed import run_distributed
from testing.sop_models import sop_config
from testing.toy_training import differences, state_of, toy_config

from mm_sop.engine import PretrainRunner


@DATASETS.register_module()
class MaskedNoise(torch.utils.data.Dataset):
    """Two global views with masks and two crops of an image of colored noise."""

    metainfo = dict(dataset_type='toy')

    def __len__(self):
        return 30

    def __getitem__(self, index):
        color = torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(index))
        views = [color + 0.5 * torch.randn(3, side, side) for side in (16, 16, 8, 8)]
        return dict(inputs=views, data_samples=DataSample(metainfo=dict(mask=(torch.rand(2, 4, 4) < 0.4).numpy())))


def train_sop(work_dir, drop_path=0.0, stop_at=None, launcher='none', batch_size=4, **changes):
    """3 epochs of 7 iterations."""
    cfg = toy_config(work_dir, launcher=launcher, **{'train_dataloader.batch_size': batch_size}, **changes)
    cfg.model = sop_config()
    cfg.model['backbone']['drop_path_rate'] = drop_path
    cfg.train_dataloader.dataset.dataset = dict(type='MaskedNoise')
    if stop_at:
        cfg.custom_hooks.append(dict(type='SignalHook', name='SIGTERM', iteration=stop_at))
    runner = PretrainRunner.from_cfg(cfg)
    runner.train()
    return runner


def interrupted_and_straight(folder, **options):
    """Everything that training changes, after an interruption in the second epoch and without."""
    straight = state_of(train_sop(f'{folder}/straight', 0.2, **options))
    with pytest.raises(SystemExit) as stopped:
        train_sop(f'{folder}/parts', 0.2, stop_at=10, experiment_name='part', **options)
    assert stopped.value.code == 128 + signal.SIGTERM
    return straight, state_of(train_sop(f'{folder}/parts', 0.2, experiment_name='resumed', resume=True, **options))


def interrupted_rank(rank, world_size, folder):
    return interrupted_and_straight(folder, launcher='pytorch', batch_size=2)


def test_resumed_run_is_bit_identical(tmp_path):
    straight, resumed = interrupted_and_straight(tmp_path)
    assert {'head.prototypes.bank.embeddings', 'target_generator.prototypes.bank.pointer'} <= straight.keys()
    assert differences(straight, resumed) == []


def test_resumed_run_of_two_processes_is_bit_identical(tmp_path):
    for straight, resumed in run_distributed(interrupted_rank, str(tmp_path)):
        assert differences(straight, resumed) == []


# AdamW would make steps of full size out of the rounding errors of gradients that are zero, as those of the keys' bias.
SGD = {'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=0.3, momentum=0.9)}


def half_the_batch(rank, world_size, folder):
    return dict(train_sop(folder, launcher='pytorch', batch_size=2, **SGD).model.module.state_dict())


def test_weights_teacher_and_banks_of_two_processes_are_those_of_one(tmp_path):
    """There is no BatchNorm, samples and anchors follow from the seed: what remains is rounding."""
    one = train_sop(tmp_path / 'one', **SGD).model.state_dict()
    ours, others = run_distributed(half_the_batch, str(tmp_path / 'two'))
    assert one.keys() == ours.keys()
    for name, value in one.items():
        assert ours[name].equal(others[name]), name
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-4, msg=name)
