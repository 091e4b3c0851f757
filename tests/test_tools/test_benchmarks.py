"""The benchmarks, started for real at their smallest."""

import json
import os
import subprocess
import sys

import pytest
from testing.pages import read_page


def run(script, arguments, out):
    """The results of a benchmark, which prints a table as well."""
    command = [sys.executable, script, *arguments.split(), '--out', out]
    subprocess.run(command, check=True, capture_output=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    return json.loads(out.read_text())['results']


def test_sop_step_measures_both_sides(repository, tmp_path):
    out = tmp_path / 'sop_step.json'
    small = '--batch 4 --bank 1024 --patch-bank 1024 --local-crops 0 --no-paper --repeats 2 --threads 1'
    (preset,) = run(repository / 'tools/benchmarks/sop_step.py', small, out).values()
    assert set(preset) == {'selection', '[CLS] loss', 'patch part', 'head', 'total'}
    assert '| patch part |' in read_page(out)


def test_train_speed_of_variants_and_inputs(repository, images, tmp_path):
    out = tmp_path / 'train_speed.json'
    small = (
        f'{repository}/configs/sop/quickstart.py --data {images} --variants eager checkpointed --batch-size 4 '
        '--turns 2 --iterations 1 --peak-tflops 1'
    )
    results = run(repository / 'tools/benchmarks/train_speed.py', small, out)
    assert [list(variants) for variants in results.values()] == [['eager', 'checkpointed']] * 2
    row = results['real']['eager']
    assert row['speed_ratio'] == 1
    assert row['tflops'] == pytest.approx(row['mfu'])
    assert '| synthetic | checkpointed |' in read_page(out)


def test_mining_stays_in_its_clusters(repository, tmp_path):
    out = tmp_path / 'mining.json'
    command = [sys.executable, repository / 'tools/benchmarks/mining.py', '--images', '600', '--width', '64']
    subprocess.run([*command, '--block-size', '256', '--sampled', '1', '--out', out], check=True, capture_output=True)
    record = json.loads(out.read_text())
    assert record['pairs'] > 300
    assert record['within'] == 1
    assert '| memory beside the features, at most |' in read_page(out)


def test_image_search_times_every_width(repository, tmp_path):
    out = tmp_path / 'image_search.json'
    small = '--images 300 --widths 8 16 --matches 5 --searches 2 --threads 1'
    results = run(repository / 'tools/benchmarks/image_search.py', small, out)
    assert list(results) == ['8', '16']
    assert all(times['median'] <= times['p95'] for times in results.values())
    assert '| 16 | ' in read_page(out)
