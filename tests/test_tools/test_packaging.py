"""What an installed MM-SOP contains, and what it needs."""

import importlib.metadata
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from email.parser import Parser
from pathlib import PurePosixPath

import pytest
import yaml

import mm_sop
import mm_sop.functional

MIM = PurePosixPath('mm_sop', '.mim')
FOLDERS = ['mm_sop', 'configs', 'tools']
FILES = ['pyproject.toml', 'setup.py', 'MANIFEST.in', 'model-index.yml', 'README.md', 'LICENSE']
HEAVY = ['mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'timm', 'torchvision', 'cv2', 'PIL', 'numpy', 'scipy', 'sklearn']
HEAVY += ['skimage', 'pandas', 'matplotlib', 'tensorboard', 'pycocotools']


@pytest.fixture(scope='module')
def wheel(repository, tmp_path_factory):
    """A wheel built offline from a copy of the checkout."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    for name in FOLDERS:
        shutil.copytree(repository / name, source / name, ignore=shutil.ignore_patterns('.mim', '__pycache__'))
    for name in FILES:
        shutil.copy(repository / name, source / name)
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-index', '--no-deps', '--no-build-isolation']
    subprocess.run([*command, '-w', folder, source], check=True, capture_output=True)
    (path,) = folder.glob('*.whl')
    return zipfile.ZipFile(path)


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """The unpacked wheel: what an installation puts into site-packages."""
    folder = tmp_path_factory.mktemp('installed')
    wheel.extractall(folder)
    return folder


def run_python(code, *arguments, **environment):
    """Run code in a fresh interpreter outside the checkout and return what it prints."""
    command = [sys.executable, '-W', 'ignore', '-c', code, *map(str, arguments)]
    environment = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd='/')
    assert result.returncode == 0, result.stderr
    return result.stdout


def files_below(folder, suffix=''):
    paths = (path for path in folder.rglob(f'*{suffix}') if path.is_file() and '__pycache__' not in path.parts)
    return {path.relative_to(folder).as_posix() for path in paths}


def metafile_configs(read):
    """List the configs of all metafiles, read by a function of their path."""
    metafiles = [yaml.safe_load(read(path)) for path in yaml.safe_load(read('model-index.yml'))['Import']]
    return [model['Config'] for metafile in metafiles for model in metafile['Models']]


def test_wheel_ships_package_configs_and_tools(repository, wheel):
    names = {name for name in wheel.namelist() if not name.endswith('/')}
    suffixes = ('.py', '.html', '.css', '.js', '.svg')
    expected = {f'mm_sop/{name}' for suffix in suffixes for name in files_below(repository / 'mm_sop', suffix)}
    for folder in ('configs', 'tools'):
        expected |= {f'{MIM}/{folder}/{name}' for name in files_below(repository / folder)}
    expected.add(f'{MIM}/model-index.yml')
    assert expected - names == set()
    assert {PurePosixPath(name).parts[0] for name in names} == {'mm_sop', f'mm_sop-{mm_sop.__version__}.dist-info'}


def test_metadata(wheel):
    folder = f'mm_sop-{mm_sop.__version__}.dist-info'
    metadata = Parser().parsestr(wheel.read(f'{folder}/METADATA').decode())
    assert metadata['Version'] == mm_sop.__version__
    assert metadata['License-Expression'] == 'Apache-2.0'
    assert b'Apache License' in wheel.read(f'{folder}/licenses/LICENSE')
    requirements = {re.split(r'[\s<>=;\[]', line)[0] for line in metadata.get_all('Requires-Dist')}
    assert {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain', 'onedl-mmdetection'} <= requirements
    assert requirements & {'mmengine', 'mmcv', 'mmcv-lite', 'mmpretrain', 'mmdet'} == set()


def test_installed_version_is_the_checkouts():
    assert importlib.metadata.version('mm-sop') == mm_sop.__version__


def test_metafiles_name_every_config_once(repository):
    configs = metafile_configs(lambda path: (repository / path).read_text())
    assert [config for config in configs if not (repository / config).is_file()] == []
    assert [config for config, count in Counter(configs).items() if count > 1] == []


def test_mim_finds_configs_by_file_name(wheel):
    """MIM takes a config by its file name, so none may stand in the package twice."""
    configs = metafile_configs(lambda path: wheel.read(f'{MIM}/{path}'))
    count = Counter(PurePosixPath(name).name for name in wheel.namelist())
    assert [config for config in configs if count[PurePosixPath(config).name] != 1] == []


def test_configs_of_the_installed_package_are_found_and_built(installed, tmp_path):
    """By the hub, and as the base of a user's config, whose parts are then found in their registries."""
    (tmp_path / 'mine.py').write_text("_base_ = 'mm_sop::sop/quickstart.py'\ncustom_hooks = [_base_.teacher_hook]")
    code = (
        'import sys\nimport mm_sop\nfrom mmengine.config import Config\nfrom mmengine.hub import get_config\n'
        'from mmengine.registry import HOOKS, MODELS, init_default_scope\n'
        'config = Config.fromfile(sys.argv[1])\ninit_default_scope(config.default_scope)\n'
        'built = MODELS.build(config.model), HOOKS.build(config.custom_hooks[0])\n'
        'print(*[type(each).__name__ for each in built])\n'
        'print(mm_sop.__file__)\nprint(get_config("mm_sop::sop/vitb.py").filename)'
    )
    built, module, config = run_python(code, tmp_path / 'mine.py', PYTHONPATH=installed).splitlines()[-3:]
    assert module == str(installed / 'mm_sop' / '__init__.py')
    assert config == str(installed / MIM / 'configs' / 'sop' / 'vitb.py')
    assert built == 'SOP TeacherHook'


def test_functional_needs_torch_only(repository):
    """Heavy packages count as missing, and all of ``mm_sop.functional`` still imports."""
    names = [module.name for module in pkgutil.iter_modules(mm_sop.functional.__path__, 'mm_sop.functional.')]
    code = (
        'import importlib, json, sys\nblocked, names = map(json.loads, sys.argv[1:])\n'
        'sys.modules.update(dict.fromkeys(blocked))\n'
        'for name in names: importlib.import_module(name)\n'
        'print([name for name in blocked if sys.modules[name]])'
    )
    assert len(names) > 5
    output = run_python(code, json.dumps(HEAVY), json.dumps(names), PYTHONPATH=repository)
    assert output.splitlines()[-1] == '[]'
