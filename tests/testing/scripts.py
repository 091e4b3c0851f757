"""Training scripts of this project and of OpenMMLab's packages, run in this process."""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from testing.distributed import reset_global_state


def script_of(package):
    """The training script that a package ships, or that of this project."""
    if package == 'mm_sop':
        return Path(__file__).parents[2] / 'tools/train.py'
    return Path(find_spec(package).origin).parent / '.mim/tools/train.py'


def run_script(script, *arguments):
    """Run a training script as from the command line."""
    reset_global_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [str(part) for part in (script, *arguments)])
        patch.setenv('LOCAL_RANK', '0')
        runpy.run_path(str(script), run_name='__main__')
