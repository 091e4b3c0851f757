"""Ships configs and tools inside the package as ``mm_sop/.mim``, where MIM and MMEngine look for them."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_EXTENSION = ('configs', 'tools', 'model-index.yml')


class BuildPyWithMIM(build_py):
    """Adds the MIM extension: links in the checkout for an editable installation, copies in a wheel."""

    def run(self):
        super().run()
        package = ROOT if self.editable_mode else Path(self.build_lib)
        folder = package / 'mm_sop' / '.mim'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in MIM_EXTENSION:
            source, target = ROOT / name, folder / name
            if self.editable_mode:
                target.symlink_to(Path('..', '..', name))
            elif source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(source, target)


setup(cmdclass={'build_py': BuildPyWithMIM})
