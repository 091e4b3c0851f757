import itertools
import os
import socket
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from testing.distributed import run_distributed

from mm_sop.engine import distributed
from mm_sop.engine.distributed import meet
from mm_sop.utils.failures import LaunchError


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def prepare(patch, port, rank, world_size, timeout):
    variables = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, RANK=rank, WORLD_SIZE=world_size)
    for name, value in dict(variables, RENDEZVOUS_TIMEOUT=timeout).items():
        patch.setenv(name, str(value))
    patch.delenv('TORCHELASTIC_USE_AGENT_STORE', raising=False)


def meet_others(rank, world_size, port, expected, timeout):
    """What the processes say to each other at the store, or why they have not met."""
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch, port, rank, expected, timeout)
        try:
            store, own_rank, found = meet()
        except LaunchError as error:
            return str(error)
        store.set(f'hello{own_rank}', str(found))
        answer = store.get(f'hello{1 - own_rank}')
        # The first process serves the store.
        dist.barrier()
        return answer


def test_processes_meet_or_name_the_missing_one():
    assert run_distributed(meet_others, free_port(), 2, 300) == [b'2', b'2']
    port = free_port()
    first, second = run_distributed(meet_others, port, 3, 8)
    assert first.startswith('rank 0 has waited')
    assert f'2 of 3 processes have arrived at 127.0.0.1:{port}, missing: rank 2.' in first
    assert 'RENDEZVOUS_TIMEOUT' in first
    # Its own time may be over a moment earlier or later than that of the serving process.
    assert 'missing: rank 2.' in second or 'has ended' in second


def test_a_first_rank_that_never_comes(monkeypatch, capsys):
    port = free_port()
    prepare(monkeypatch, port, 1, 2, 3)
    monkeypatch.setattr(distributed, '_REPORT_SECONDS', 1.0)
    # Half a second passes between two looks at the clock, however long an attempt to connect takes.
    monkeypatch.setattr(distributed, 'time', SimpleNamespace(monotonic=itertools.count(0, 0.5).__next__))
    with pytest.raises(LaunchError, match=rf'rank 1 has waited .*: 127\.0\.0\.1:{port} cannot be reached'):
        meet()
    assert 'Rank 1 has waited for' in capsys.readouterr().out
    monkeypatch.setenv('RENDEZVOUS_TIMEOUT', 'soon')
    with pytest.raises(LaunchError, match='RENDEZVOUS_TIMEOUT=soon: expected seconds'):
        meet()


def test_nccl_without_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(LaunchError, match="backend='nccl' needs a CUDA device"):
        distributed.connect_processes('pytorch', dict(backend='nccl'))


@pytest.mark.parametrize(
    ('launcher', 'variables'),
    [
        ('slurm', dict(SLURM_PROCID='3', SLURM_NTASKS='4', SLURM_LOCALID='1')),
        (
            'mpi',
            {f'OMPI_COMM_WORLD_{name}': value for name, value in (('RANK', '3'), ('SIZE', '4'), ('LOCAL_RANK', '1'))},
        ),
    ],
)
def test_ranks_of_other_launchers_are_translated(monkeypatch, launcher, variables):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'SLURM_JOB_ID', 'SLURM_NODELIST'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    environ = os.environ
    distributed._export_rank(launcher)
    assert [environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')] == ['3', '4', '1']
    assert environ['MASTER_ADDR'] == '127.0.0.1'
    assert environ['MASTER_PORT'] == '29500'


def test_slurm_jobs_on_one_machine_meet_at_different_ports(monkeypatch):
    for name, value in dict(SLURM_PROCID='0', SLURM_NTASKS='2', SLURM_LOCALID='0', MASTER_ADDR='127.0.0.1').items():
        monkeypatch.setenv(name, value)
    ports = []
    for job in ('1234567', '1234568'):
        monkeypatch.setenv('SLURM_JOB_ID', job)
        # Set and removed, so that it is restored at the end.
        for name in ('MASTER_PORT', 'RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
            monkeypatch.setenv(name, '')
            monkeypatch.delenv(name)
        distributed._export_rank('slurm')
        ports.append(int(os.environ['MASTER_PORT']))
    # Below the ports that the system gives to outgoing connections.
    assert 1024 < ports[0] != ports[1] < 32768


def test_a_process_that_ends_before_it_is_watched_is_named(monkeypatch):
    monkeypatch.setattr(distributed, 'meet', lambda: (dist.HashStore(), 0, 2))
    monkeypatch.setattr(distributed, 'watch_peers', lambda *arguments: None)
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.setenv(name, '0')
    for name, value in dict(MASTER_ADDR='127.0.0.1', MASTER_PORT='1', RENDEZVOUS_TIMEOUT='0.5').items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match='1 of 2 processes have arrived .*missing: rank 1'):
        distributed.connect_processes('pytorch')
