import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mm_sop import compat

HEAVY = (
    *('faiss', 'imgaug', 'matplotlib', 'mmdet', 'mmdet.datasets', 'onnx', 'scipy', 'skimage', 'sklearn', 'tensorboard'),
    *('timm', 'transformers', 'umap'),
)
# What the libraries below have by themselves on a CPU-only PyTorch, where their import fails without these two.
PREPARE = (
    'import sys, importlib.util\n'
    'spec = importlib.util.find_spec("mm_sop.compat")\n'
    'compat = importlib.util.module_from_spec(spec)\n'
    'spec.loader.exec_module(compat)\n'
    'compat.define_torchvision_operators()\n'
    'compat.leave_out_multimodal_models()\n'
    'sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "mm_sop.registration"]\n'
)
# Attributes of other libraries that remedies replace, and settings of the process.
OBSERVE = """
import json, os, signal, sys, threading
import cv2, torch
import mmengine.logging, mmengine.runner.checkpoint
from mmpretrain.models import BaseSelfSupervisor, MoCoV3ViT, VisionTransformer
def observe():
    schemes = mmengine.runner.checkpoint.CheckpointLoader._schemes
    return [
        mmengine.logging.print_log, dict(schemes), cv2.getNumThreads(), BaseSelfSupervisor.forward,
        VisionTransformer.train, MoCoV3ViT.__init__,
        torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, threading.active_count(),
        dict(os.environ), {number: signal.getsignal(number) for number in signal.valid_signals()},
        sys.excepthook, sys.stdout, list(sys.path), os.getcwd(),
    ]
"""


def run(code, *args, **environment):
    """Run Python in a process of its own, give what it printed."""
    done = subprocess.run(
        [sys.executable, '-c', code, *args],
        env=dict(os.environ, **environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_mmpretrain_works_beside_transformers_5(tmp_path):
    (tmp_path / 'transformers').mkdir()
    (tmp_path / 'transformers/__init__.py').touch()
    (tmp_path / 'transformers-5.1.0.dist-info').mkdir()
    metadata = 'Metadata-Version: 2.1\nName: transformers\nVersion: 5.1.0\n'
    (tmp_path / 'transformers-5.1.0.dist-info/METADATA').write_text(metadata)
    code = 'import mm_sop; from mmpretrain.models import VisionTransformer; from mm_sop.models import SOP'
    run(code, PYTHONPATH=os.pathsep.join([str(tmp_path), str(Path.cwd())]))


def test_only_the_missing_platform_is_passed_over_in_silence(capsys):
    import mmengine.logging

    with compat.silenced_onedl():
        mmengine.logging.print_log('Could not import OneDL. Skipping OneDL datasets.', level=logging.DEBUG)
        assert not capsys.readouterr().out
        mmengine.logging.print_log('Could not import something else', level=logging.DEBUG)
        assert capsys.readouterr().out == 'Could not import something else\n'


def test_functional_loads_nothing_of_openmmlab():
    code = 'import sys, mm_sop.functional\nprint(*sorted({name.split(".")[0] for name in sys.modules}))'
    baseline = set(run(code.replace('mm_sop.functional', 'torch')).split())
    assert set(run(code).split()) - baseline <= {'mm_sop', *sys.stdlib_module_names}


CONFIG = "custom_imports = dict(imports=['mm_sop'], allow_failed_imports=False)\nmodel = dict(type='SOP')\n"
FIND = "assert MODELS.get('SOP').__module__ == 'mm_sop.models.selfsup.sop'\n"


@pytest.mark.parametrize(
    'code',
    [
        PREPARE + 'from mmpretrain.registry import MODELS\nMODELS.import_from_location()\n'
        'del sys.modules["mm_sop"]\nimport mm_sop\n',
        'import mm_sop.functional\nfrom mmpretrain.registry import MODELS\n',
        'import sys, mm_sop, mmengine\nmmengine.Config.fromfile(sys.argv[1])\nfrom mmpretrain.registry import MODELS\n',
    ],
    ids=['after MMPretrain', 'before MMPretrain', 'before a config'],
)
def test_components_are_registered_whatever_is_imported_first(code, tmp_path):
    (tmp_path / 'config.py').write_text(CONFIG)
    detector = 'from mmdet.registry import WEIGHT_INITIALIZERS\nassert WEIGHT_INITIALIZERS.get("PretrainedBackbone")\n'
    run(code + detector + FIND, str(tmp_path / 'config.py'))


def test_components_load_no_heavy_package_that_mmpretrain_leaves_out():
    """Beyond what MMPretrain's models and datasets load by themselves."""
    show = f'\nprint(*[name for name in {HEAVY} if name in sys.modules])'
    baseline = run(f'{PREPARE}import mmpretrain.models, mmpretrain.datasets{show}').splitlines()[-1]
    found = run(f'import sys, mm_sop.components{show}').splitlines()[-1]
    assert set(found.split()) - set(baseline.split()) == set()


def test_importing_changes_nothing_else():
    """But for what :mod:`mm_sop.compat` lists."""
    code = (
        f'{PREPARE}{OBSERVE}before = observe()\nimport mm_sop.components, mm_sop.export, mm_sop.report\n'
        'changed = [str(old) for old, new in zip(before, observe()) if old != new]\n'
        'assert not changed, changed\n'
        'from mm_sop import compat\ncompat.apply()\nafter = observe()\ncompat.apply()\n'
        'assert [old != new for old, new in zip(before, after)] == [True] * 4 + [False] * (len(after) - 4)\n'
        'assert observe() == after\n'
    )
    run(code)
