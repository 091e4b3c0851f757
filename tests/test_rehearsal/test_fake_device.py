"""The device that does not exist shows what a GPU would: each kind of fault is planted once."""

import pytest
import torch
from testing.rehearsal import observe
from testing.rehearsal_toys import faulty, good_step, harmless, memory_of_tensors, mixed


def test_a_good_step_has_no_faults(process):
    found = process.submit(observe, good_step).result()
    dtype, gradients, weights, memory, peak = found['result']
    assert (dtype, gradients) == ('torch.bfloat16', {'gpu:0'})
    assert (found['waits'], found['uploads'], found['float64']) == ({}, {}, {})
    # Two products forward; for the weights of both and the input of the second, backward.
    assert found['flops'] == 2 * 16 * (64 * 32 + 32 * 8) * 2 + 2 * 16 * 32 * 8
    # Weights and gradients in float32, images and outputs.
    assert 8 * weights < memory < peak


def test_memory_is_that_of_the_storages_alive(process):
    assert process.submit(observe, memory_of_tensors).result()['result'] == (6000, 4000, 0, 6000)


@pytest.mark.parametrize(
    'fault', ['item', 'condition', 'mask', 'assignment', 'download', 'upload', 'list', 'numbers', 'multinomial']
)
def test_host_waits_are_counted_where_they_are(process, fault):
    waits = process.submit(observe, faulty, fault).result()['waits']
    assert list(waits.values()) == [1]
    assert next(iter(waits)).startswith('rehearsal_toys.py: ')


def test_float64_is_found(process):
    assert process.submit(observe, faulty, 'float64').result()['float64']


def test_mixed_devices_are_refused(process):
    with pytest.raises(Exception, match='FakeTensorDeviceMismatchError'):
        process.submit(observe, mixed).result()


def test_what_does_not_wait_is_not_counted(process):
    found = process.submit(observe, harmless).result()
    assert (found['waits'], found['float64']) == ({}, {})


def test_this_process_has_no_such_device():
    with pytest.raises(RuntimeError, match='gpu'):
        torch.device('gpu')
