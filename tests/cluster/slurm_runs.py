"""tools/slurm_train.sh on a cluster of two nodes, which run.sh starts; not collected by a plain run of pytest."""

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


@pytest.fixture
def submit(repository, work_dir, monkeypatch):
    """Train in one process on each node, with a pause after some iterations; return the job's number."""
    monkeypatch.setenv('PYTHON', sys.executable)
    monkeypatch.setenv('PYTHONPATH', str(repository / 'tests'))
    for name, value in dict(GRES='', GPUS_PER_NODE='1', CPUS_PER_TASK='1', LOST_PROCESS_TIMEOUT='4').items():
        monkeypatch.setenv(name, value)
    jobs = []

    def start(folder, options='', batch=True, **pause):
        cfg = toy_config(folder, log_level='INFO', **{'train_dataloader.batch_size': 2, 'launcher': 'none'})
        if pause:
            cfg.custom_hooks.append(dict(type='PauseHook', **pause))
        folder.mkdir(exist_ok=True)
        cfg.dump(folder / 'toy.py')
        monkeypatch.setenv('BATCH', str(int(batch)))
        monkeypatch.setenv('SBATCH_ARGS', f'--output={folder}/output.txt {options}')
        command = ['bash', repository / 'tools/slurm_train.sh', 'low', 'a job', folder / 'toy.py', '2']
        output = run(*command)
        if batch:
            jobs.append(re.search(r'Submitted batch job (\d+)', output)[1])
            return jobs[-1]
        return output

    yield start
    for job in jobs:
        subprocess.run(['scancel', '--quiet', job])


@pytest.fixture
def straight(submit, tmp_path_factory):
    """Weights of an uninterrupted run, by ``srun``."""
    folder = tmp_path_factory.mktemp('straight')
    submit(folder, batch=False)
    return weights_of(folder)


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


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


def test_a_preempted_job_resumes_by_itself(submit, work_dir, straight):
    job = submit(work_dir, iteration=9)
    wait_until((work_dir / 'paused').is_file, work_dir)
    run('sbatch', '--partition=high', '--nodes=2', '--output=/dev/null', '--wrap=true')
    assert_requeued_once(job, work_dir, straight)


def test_a_signaled_job_resumes_by_itself(submit, work_dir, straight):
    job = submit(work_dir, iteration=9)
    wait_until((work_dir / 'paused').is_file, work_dir)
    run('scancel', '--batch', '--signal=USR1', job)
    assert_requeued_once(job, work_dir, straight)
