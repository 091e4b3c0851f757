"""The check on a GPU, as far as it goes without one."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def tools(repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / 'tools/benchmarks')


def test_ends_at_once_without_a_gpu(repository):
    command = ['bash', repository / 'tools/benchmarks/gpu_check.sh']
    env = dict(CUDA_VISIBLE_DEVICES='', PYTHON=sys.executable, PATH='/usr/bin:/bin')
    finished = subprocess.run(command, capture_output=True, text=True, env=env)
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].startswith('gpu_check: PyTorch finds no CUDA device')
    planned = subprocess.run([*command, '--dry-run'], capture_output=True, text=True, env=env, check=True).stdout
    assert 'CUDA tests (at most 90 s): python -m pytest tests/test_cuda' in planned


def test_failed_and_slow_steps_are_recorded_and_the_others_run(tools, tmp_path):
    from gpu_check import Step, format_page, run_all

    steps = [
        Step('fails', "-c 'print(17); raise SystemExit(3)'", 20),
        Step('hangs', "-c 'import time; print(18, flush=True); time.sleep(60)'", 2),
        Step('writes', """-c 'open("{out}", "w").write("[19]")'""", 20),
    ]
    records = run_all(steps)
    assert [record['state'] for record in records.values()] == ['exit code 3', 'stopped after 2 s', 'passed']
    assert [records[name]['output'].strip() for name in ('fails', 'hangs')] == ['17', '18']
    assert records['writes']['result'] == [19]
    page = format_page(dict(environment='here', command='this', steps=json.loads(json.dumps(records))))
    assert '| hangs  | stopped after 2 s |' in page
    assert run_all(steps[:1], total=0)['fails']['state'] == 'no time left'


def test_commands_of_the_plan_exist(tools, repository):
    from gpu_check import TOTAL_SECONDS, plan_steps

    steps = plan_steps()
    assert sum(step.seconds for step in steps) <= TOTAL_SECONDS
    for step in steps:
        script, *arguments = step.command.split()
        assert script == '-m' or (repository / script).is_file()
        assert all((repository / each).is_file() for each in arguments if each.endswith('.py'))


def test_one_process_trains_in_a_group(repository):
    """As with NCCL, by gloo."""
    code = "from gpu_probe import train_in_a_group; print(train_in_a_group('bfloat16', 'gloo'))"
    command = [sys.executable, '-c', code]
    finished = subprocess.run(command, cwd=repository / 'tools/benchmarks', capture_output=True, text=True)
    assert "'wrapper': 'MMDistributedDataParallel', 'backend': 'gloo'" in finished.stdout, finished.stderr[-3000:]
