"""The benchmarks, started for real at their smallest."""

import json
import os
import subprocess
import sys


def test_sop_step_measures_both_sides(repository, tmp_path):
    out = tmp_path / 'sop_step.json'
    small = '--batch 4 --bank 1024 --patch-bank 1024 --local-crops 0 --no-paper --repeats 2 --threads 1'
    command = [sys.executable, repository / 'tools/benchmarks/sop_step.py', *small.split(), '--out', out]
    subprocess.run(command, check=True, capture_output=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    (preset,) = json.loads(out.read_text())['results'].values()
    assert set(preset) == {'selection', '[CLS] loss', 'patch part', 'head', 'total'}
    assert '| patch part |' in out.with_suffix('.md').read_text()
