"""Commands parse their arguments before they import what they work with."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from mm_sop.apps import cli

COMMANDS = sorted(path.stem for path in Path(cli.__file__).parent.glob('*.py') if 'def main' in path.read_text())
HEAVY = ['torch', 'torchvision', 'numba', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'matplotlib', 'sklearn', 'faiss']

# Prints the heavy modules that each command loads for its help, and its text.
CODE = """
import contextlib, importlib, io, json, sys
results = {}
for name in json.loads(sys.argv[1]):
    text = io.StringIO()
    sys.argv = [f'{name}.py', '--help']
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        importlib.import_module(f'mm_sop.apps.cli.{name}').main()
    results[name] = [module for module in HEAVY if module in sys.modules]
    assert f'usage: {name}.py' in text.getvalue(), name
print(json.dumps(results))
"""


def test_help_loads_nothing_heavy():
    command = [sys.executable, '-c', f'HEAVY = {HEAVY}{CODE}', json.dumps(COMMANDS)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {name: [] for name in COMMANDS}


def test_every_command_has_a_tool(repository):
    helpers = {'build_mmcv.py', 'torchrun.py'}  # which the scripts of the shell call
    tools = {path.name for path in (repository / 'tools').glob('*.py')}
    assert {f'{name}.py' for name in COMMANDS} == tools - helpers


def test_choices_and_defaults_are_those_of_the_library(monkeypatch):
    from mm_sop.apps.cli import evaluate, export, mine_pairs
    from mm_sop.evaluation.features.store import DTYPES
    from mm_sop.evaluation.retrieval.mining import Selection
    from mm_sop.export import TARGETS

    assert sorted(export.TARGETS) == sorted(TARGETS)
    monkeypatch.setattr(sys, 'argv', ['mine_pairs.py', 'config.py', 'checkpoint.pth'])
    args = mine_pairs.parse_args()
    assert {field.name: getattr(args, field.name) for field in fields(Selection)} == vars(Selection())
    for dtype in DTYPES:
        monkeypatch.setattr(sys, 'argv', ['evaluate.py', 'config.py', 'checkpoint.pth', '--dtype', dtype])
        assert evaluate.parse_args().dtype == dtype


@pytest.mark.parametrize('name', ['train', 'evaluate'])
def test_options_must_be_pairs(name, monkeypatch, capsys):
    from importlib import import_module

    arguments = ['config.py'] if name == 'train' else ['config.py', 'checkpoint.pth']
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *arguments, '--cfg-options', 'train_cfg.max_epochs:3'])
    with pytest.raises(SystemExit) as stopped:
        import_module(f'mm_sop.apps.cli.{name}').main()
    assert stopped.value.code == 2
    assert '--cfg-options: expected KEY=VALUE ..., got train_cfg.max_epochs:3' in capsys.readouterr().err
