"""tools/slurm_train.sh on a cluster of two nodes, which run.sh starts; not collected by a plain run of pytest."""

import os
import re
import subprocess
import sys
import time

import pytest
import torch
from testing.toy_training import toy_config

from mm_sop.utils.run_starts import list_starts

LIMIT = 120.0
"""Seconds until something has to have happened."""


@pytest.fixture(scope='module')
def submit(repository):
    """Train in one process on each node, with a pause after some iterations; return the job's number."""
    jobs = []

    def start(folder, batch=True, hooks=()):
        cfg = toy_config(folder, log_level='INFO', **{'train_dataloader.batch_size': 2, 'launcher': 'none'})
        cfg.custom_hooks.extend(hooks)
        cfg.dump(folder / 'toy.py')
        environment = dict(
            os.environ,
            PYTHON=sys.executable,
            PYTHONPATH=str(repository / 'tests'),
            GRES='',
            GPUS_PER_NODE='1',
            CPUS_PER_TASK='1',
            LOST_PROCESS_TIMEOUT='4',
            BATCH=str(int(batch)),
            SBATCH_ARGS=f'--output={folder}/output.txt',
        )
        script = repository / 'tools/slurm_train.sh'
        output = run('bash', script, 'low', 'a job', folder / 'toy.py', '2', env=environment)
        if batch:
            jobs.append(output.split()[-1])
        return jobs[-1] if batch else None

    yield start
    subprocess.run(['scancel', '--quiet', *jobs])


@pytest.fixture(scope='module')
def straight(submit, tmp_path_factory):
    """Weights of an uninterrupted run, which ``srun`` has started."""
    folder = tmp_path_factory.mktemp('straight')
    submit(folder, batch=False)
    return weights_of(folder)


def run(*command, **options):
    command = [str(part) for part in command]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **options).stdout


def weights_of(folder):
    return torch.load(folder / 'iter_21.pth', weights_only=False)['state_dict']


def state_of(job):
    return dict(re.findall(r'(\w+)=(\S*)', run('scontrol', 'show', 'job', job)))


def wait_until(condition, folder):
    deadline = time.monotonic() + LIMIT
    while not condition():
        output = folder / 'output.txt'
        assert time.monotonic() < deadline, output.read_text() if output.is_file() else run('squeue')
        time.sleep(0.5)


def wait_for_end(job, folder):
    wait_until(lambda: state_of(job)['JobState'] in ('COMPLETED', 'FAILED', 'CANCELLED', 'NODE_FAIL'), folder)
    return state_of(job)


def assert_requeued_once(job, folder, straight):
    """It has ended with the weights of an uninterrupted run, which it reached in two parts."""
    state, output = wait_for_end(job, folder), (folder / 'output.txt').read_text()
    assert (state['JobState'], state['Restarts']) == ('COMPLETED', '1'), output
    assert 'Restart 1: the run goes on from its last checkpoint' in output
    starts = [start.iteration for start in list_starts(folder)]
    assert len(starts) == 2, output
    assert 8 < starts[1] < 21
    weights = weights_of(folder)
    assert weights.keys() == straight.keys()
    assert all(straight[name].equal(value) for name, value in weights.items())


@pytest.fixture
def paused_job(submit, work_dir):
    """Job that waits after iteration 9."""
    job = submit(work_dir, hooks=[dict(type='PauseHook', iteration=9)])
    wait_until((work_dir / 'paused').is_file, work_dir)
    return job


def test_a_preempted_job_resumes_by_itself(paused_job, work_dir, straight):
    run('sbatch', '--partition=high', '--nodes=2', '--output=/dev/null', '--wrap=true')
    assert_requeued_once(paused_job, work_dir, straight)


def test_a_job_that_is_told_to_stop_resumes_by_itself(paused_job, work_dir, straight):
    run('scancel', '--batch', '--signal=USR1', paused_job)
    assert_requeued_once(paused_job, work_dir, straight)


def test_a_job_whose_processes_are_told_to_stop_saves_and_ends(paused_job, work_dir):
    run('scancel', '--signal=USR1', paused_job)
    state = wait_for_end(paused_job, work_dir)
    assert (state['JobState'], state['Restarts']) == ('COMPLETED', '0')
    assert 'Stopped by SIGUSR1. Go on with' in (work_dir / 'output.txt').read_text()


def test_a_canceled_job_ends(paused_job, work_dir):
    run('scancel', paused_job)
    state = wait_for_end(paused_job, work_dir)
    assert (state['JobState'], state['Restarts']) == ('CANCELLED', '0')


def test_the_loss_of_a_process_is_explained(submit, work_dir):
    job = submit(work_dir, hooks=[dict(type='SignalHook', name='SIGKILL', iteration=9, rank=1)])
    state, output = wait_for_end(job, work_dir), (work_dir / 'output.txt').read_text()
    assert (state['JobState'], state['Restarts']) == ('FAILED', '0')
    assert output.count('rank 1 of 2 has ended') == 1
    assert f'{work_dir}/iter_8.pth: go on with the same command and --resume' in output
    assert 'Traceback' not in output
