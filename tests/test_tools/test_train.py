"""The training scripts, started for real."""

import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch
from testing.distributed import run_distributed
from testing.toy_training import differences, state_of, toy_config, train

from mm_sop.apps.cli import train as train_command
from mm_sop.engine.hooks.bad_image_hook import TooManyBadImagesError
from mm_sop.engine.hooks.collapse_guard_hook import CollapseError
from mm_sop.engine.launch import launch
from mm_sop.engine.optimizers.pretrain_optim_wrapper import NonFiniteLossError
from mm_sop.utils.run_starts import list_starts


@pytest.fixture
def environment(repository):
    path = os.pathsep.join([str(repository / 'tests'), str(repository)])
    return dict(os.environ, PYTHONPATH=path, PYTHON=sys.executable, OMP_NUM_THREADS='1')


def write_config(work_dir, batch_size=4, hooks=(), **signal_options):
    cfg = toy_config(work_dir, log_level='INFO', **{'train_dataloader.batch_size': batch_size})
    if signal_options:
        cfg.custom_hooks.append(dict(type='SignalHook', **signal_options))
    cfg.custom_hooks.extend(hooks)
    cfg.launcher = 'none'
    path = work_dir / 'toy.py'
    cfg.dump(path)
    return path


def run(command, environment):
    return subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, timeout=540)


def test_killed_and_stopped_run_equals_a_straight_one(repository, work_dir, environment):
    command = [sys.executable, repository / 'tools/train.py', work_dir / 'toy.py']

    write_config(work_dir, name='SIGKILL', iteration=9)
    killed = run(command, environment)
    assert killed.returncode == -9
    assert (work_dir / 'last_checkpoint').read_text().endswith('iter_8.pth')

    write_config(work_dir, name='SIGUSR1', iteration=12)
    queued = run([*command, '--resume'], environment)
    assert queued.returncode == 0, queued.stderr
    assert f'Stopped by SIGUSR1. Go on with the same command and --resume {work_dir}/iter_12.pth' in queued.stdout

    write_config(work_dir, name='SIGTERM', iteration=17)
    stopped = run([*command, '--resume', work_dir / 'iter_12.pth'], environment)
    assert stopped.returncode == 143, stopped.stderr
    # One iteration later than the signal, when the accumulated gradients are used.
    assert f'Stopped by SIGTERM. Go on with the same command and --resume {work_dir}/iter_18.pth' in stopped.stdout

    resumed = train(work_dir, resume=True, experiment_name='resumed')
    assert [start.iteration for start in list_starts(work_dir)] == [0, 8, 12, 18]
    straight = train(work_dir / 'straight', experiment_name='straight')
    assert differences(state_of(straight), state_of(resumed)) == []


def resumed_and_straight(rank, world_size, work_dir):
    """States after the continuation of an interrupted run and after an uninterrupted one."""
    states = []
    for folder, resume in ((work_dir, True), (f'{work_dir}/straight', False)):
        cfg = toy_config('unused', experiment_name=str(resume), **{'train_dataloader.batch_size': 2})
        states.append(state_of(launch(cfg, folder, resume, launcher='pytorch')))
    return states


def test_two_processes_killed_and_signaled_through_the_script(repository, work_dir, environment):
    command = ['bash', repository / 'tools/dist_train.sh', work_dir / 'toy.py', '2']

    write_config(work_dir, 2, name='SIGKILL', iteration=9, rank=1)
    killed = run(command, environment)
    assert killed.returncode != 0
    assert (work_dir / 'last_checkpoint').read_text().endswith('iter_8.pth')
    assert killed.stderr.count('rank 1 of 2 has ended') == 1
    assert 'killed by signal 9, SIGKILL' in killed.stderr
    assert 'Traceback' not in killed.stderr

    write_config(work_dir, 2, name='SIGUSR1', iteration=11, rank=0, to_script=True)
    queued = run([*command, '--resume'], environment)
    assert queued.returncode == 0, queued.stderr
    assert f'Stopped by SIGUSR1. Go on with the same command and --resume {work_dir}/iter_12.pth' in queued.stdout

    # Gradients are first exchanged in iteration 14: from then on the other process listens to signals as well.
    write_config(work_dir, 2, name='SIGTERM', iteration=15, rank=0, to_script=True)
    stopped = run([*command, '--resume'], environment)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert f'Stopped by SIGTERM. Go on with the same command and --resume {work_dir}/iter_16.pth' in stopped.stdout

    for resumed, straight in run_distributed(resumed_and_straight, str(work_dir)):
        assert differences(straight, resumed) == []


def straight_weights(rank, world_size, folder):
    cfg = toy_config('unused', **{'train_dataloader.batch_size': 2})
    return dict(launch(cfg, folder, launcher='pytorch').model.module.state_dict())


def test_machines_go_on_after_the_loss_of_a_process(repository, work_dir, environment):
    """A process is killed while the other one, under its own agent, computes for minutes."""
    hooks = [
        dict(type='SignalHook', name='SIGKILL', iteration=9, rank=1, attempt=0),
        dict(type='BusyHook', iteration=9),
    ]
    write_config(work_dir, 2, hooks)
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = str(server.getsockname()[1])
    environment.update(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=port, MAX_RESTARTS='1', LOST_PROCESS_TIMEOUT='4')
    command = ['bash', str(repository / 'tools/dist_train.sh'), str(work_dir / 'toy.py'), '1']
    command += ['--cfg-options', 'train_dataloader.num_workers=1']
    machines = [
        subprocess.Popen(command, env=dict(environment, NODE_RANK=rank), stderr=subprocess.PIPE, text=True)
        for rank in ('0', '1')
    ]
    first, second = (machine.communicate(timeout=150)[1] for machine in machines)
    assert [machine.returncode for machine in machines] == [0, 0], first + second
    assert 'rank 1 of 2 has ended' in first
    assert f'{work_dir}/iter_8.pth: go on with the same command and --resume' in first
    assert 'Traceback' not in first + second
    assert [start.iteration for start in list_starts(work_dir)] == [0, 8]
    weights = torch.load(work_dir / 'iter_21.pth', weights_only=False)['state_dict']
    for straight in run_distributed(straight_weights, f'{work_dir}/straight'):
        assert weights.keys() == straight.keys()
        assert all(straight[name].equal(value) for name, value in weights.items())


def resume_until(rank, world_size, work_dir, iteration):
    cfg = toy_config('unused', **{'train_dataloader.batch_size': 2, 'train_cfg.max_epochs': 9999})
    return launch(cfg, work_dir, True, launcher='pytorch', cfg_options={'train_cfg.max_iters': iteration}).iter


def test_processes_end_with_their_launcher(repository, work_dir, environment):
    write_config(work_dir, 2, name='SIGKILL', iteration=9, to_launcher=True)
    command = ['bash', repository / 'tools/dist_train.sh', work_dir / 'toy.py', '2', '--cfg-options']
    # The pipes of the output are closed when the last process has ended.
    killed = run([*command, 'train_cfg.max_epochs=9999', 'default_hooks.checkpoint.epochs=-1'], environment)
    assert killed.returncode != 0
    saved = int((work_dir / 'last_checkpoint').read_text().rpartition('_')[2].removesuffix('.pth'))
    assert 9 < saved < 7 * 9999
    assert f'Stopped by SIGTERM. Go on with the same command and --resume {work_dir}/iter_{saved}.pth' in killed.stdout
    assert run_distributed(resume_until, str(work_dir), saved + 2) == [saved + 2] * 2


def test_signals_arrive_without_ps_and_a_taken_port_is_named(repository, work_dir, environment, tmp_path):
    command = ['bash', repository / 'tools/dist_train.sh', work_dir / 'toy.py', '2']
    for name in ('bash', 'cat', 'nproc', 'dirname', 'kill', 'sed', 'realpath'):
        if shutil.which(name):
            (tmp_path / name).symlink_to(shutil.which(name))
    write_config(work_dir, 2, name='SIGTERM', iteration=5, rank=0, to_script=True)
    stopped = run(command, dict(environment, PATH=str(tmp_path)))
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr

    with socket.create_server(('127.0.0.1', 0)) as server:
        refused = run(command, dict(environment, PORT=str(server.getsockname()[1])))
    assert refused.returncode != 0
    assert 'in use' in refused.stderr


def test_wrong_use_is_explained(repository, work_dir, environment, tmp_path):
    usage = run(['bash', repository / 'tools/dist_train.sh', 'config.py', 'two'], environment)
    assert (usage.returncode, usage.stderr[:6]) == (2, 'usage:')
    command = [sys.executable, repository / 'tools/train.py', work_dir / 'toy.py']
    unknown = run(command, environment)
    assert unknown.returncode == 1
    assert unknown.stderr.splitlines()[-1].startswith(f'train.py: no config {work_dir}/toy.py')


@pytest.mark.parametrize('error', [TooManyBadImagesError, NonFiniteLossError, CollapseError, FileNotFoundError])
def test_errors_that_end_a_run_have_no_traceback(monkeypatch, error):
    def fail(**arguments):
        raise error('the reason')

    monkeypatch.setattr('mm_sop.engine.launch.launch', fail)
    monkeypatch.setattr(sys, 'argv', ['train.py', 'config.py'])
    with pytest.raises(SystemExit, match='train.py: the reason'):
        train_command.main()


def test_arguments(monkeypatch, capsys):
    options = ['--data', 'd', '--pretrained', 'p', '--seed', '4', '--trust', '--cfg-options', 'a.b=1', 'c=[x,2]']
    monkeypatch.setattr(sys, 'argv', ['train.py', 'config.py', '--resume', '--amp', *options])
    assert vars(train_command.parse_args()) == dict(
        config='config.py',
        work_dir=None,
        resume=True,
        amp=True,
        data='d',
        pretrained='p',
        seed=4,
        launcher='none',
        trust=True,
        cfg_options={'a.b': 1, 'c': ['x', 2]},
    )
    monkeypatch.setattr(sys, 'argv', ['train.py', 'config.py', '--cfg-options', 'lr', '3'])
    with pytest.raises(SystemExit):
        train_command.parse_args()
    assert '--cfg-options: expected KEY=VALUE ..., got lr 3' in capsys.readouterr().err


@pytest.fixture
def slurm(environment, tmp_path):
    """Stand-ins for Slurm's commands: ``srun`` and ``sbatch`` keep their arguments, line by line."""
    programs = dict(
        srun='printf "%s\\n" "$@" >srun.txt',
        sbatch='printf "%s\\n" "$@" >sbatch.txt; cat >job.sh',
        scancel='echo "$@" >scancel.txt; touch stopped',
        scontrol='[ "$1" = requeue ] && touch requeued || echo "JobId=$3 $STATE"',
    )
    for name, body in programs.items():
        (tmp_path / name).write_text(f'#!/bin/sh\ncd {tmp_path}\n{body}\n')
        (tmp_path / name).chmod(0o755)
    environment.update(PATH=f'{tmp_path}:{environment["PATH"]}', SLURM_JOB_ID='7')
    return tmp_path


def test_slurm_script_asks_for_tasks_and_passes_arguments_on(repository, environment, slurm):
    script = repository / 'tools/slurm_train.sh'
    command = ['bash', script, 'gpu', 'job', 'a b.py', '16', '--seed', '1']
    asked = {'--partition=gpu', '--job-name=job', '--ntasks=16', '--ntasks-per-node=8'}
    last = [f'{script.parent}/train.py', 'a b.py', '--launcher', 'slurm', '--seed', '1']
    run(command, dict(environment, SRUN_ARGS='--signal=USR1@300'))
    arguments = (slurm / 'srun.txt').read_text().splitlines()
    assert asked | {'--gres=gpu:8', '--signal=USR1@300'} <= {*arguments}
    assert arguments[-6:] == last

    run(command, dict(environment, BATCH='1', GRES='', SBATCH_ARGS='--time=60 --requeue'))
    arguments = (slurm / 'sbatch.txt').read_text().splitlines()
    assert asked | {'--requeue', '--open-mode=append', '--time=60'} <= {*arguments}
    assert run(['bash', slurm / 'job.sh'], dict(environment, STATE='JobState=RUNNING PreemptTime=None')).returncode == 0
    assert not (slurm / 'requeued').exists()
    arguments = (slurm / 'srun.txt').read_text().splitlines()
    assert not any(argument.startswith('--gres') for argument in arguments)
    assert arguments[-6:] == last

    assert run(command[:-3], environment).returncode == 2
    assert run(command, dict(environment, GPUS_PER_NODE='0')).returncode == 2


@pytest.mark.parametrize(
    ('state', 'is_signaled', 'is_requeued'),
    [
        ('JobState=RUNNING PreemptTime=None', True, True),
        ('JobState=RUNNING PreemptTime=2026-12-01T11:15:48', False, True),
        ('JobState=RUNNING PreemptTime=None', False, False),
        ('JobState=COMPLETING PreemptTime=2026-12-01T11:15:48', True, False),
    ],
)
def test_jobs_that_are_stopped_go_back_to_the_queue(repository, environment, slurm, state, is_signaled, is_requeued):
    """The first is at its time limit, the second preempted, the third has failed, the last is canceled."""
    run(['bash', repository / 'tools/slurm_train.sh', 'gpu', 'job', 'a.py', '2'], dict(environment, BATCH='1'))
    signals = f'kill -USR1 $(cut -d " " -f 4 /proc/$$/stat); while ! [ -e {slurm}/stopped ]; do sleep 0.02; done'
    (slurm / 'srun').write_text(f'#!/bin/sh\n{signals if is_signaled else ""}\nexit 3\n')
    assert run(['bash', slurm / 'job.sh'], dict(environment, STATE=state)).returncode == 3
    assert (slurm / 'requeued').exists() == is_requeued
    if is_signaled:
        assert (slurm / 'scancel.txt').read_text() == '--signal=USR1 7\n'
