"""SOP in the real loop: resumption in the middle of an epoch, and two processes against one."""

import signal

import pytest
import torch
from testing.distributed import run_distributed
from testing.sop_training import train_sop
from testing.toy_training import differences, state_of


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
