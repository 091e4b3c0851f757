"""The set-up script and the MMCV build, as far as they go without a network."""

import importlib.util
import os
import shutil
import subprocess

import pytest


@pytest.fixture(scope='module')
def build_mmcv(repository):
    specification = importlib.util.spec_from_file_location('build_mmcv', repository / 'tools' / 'build_mmcv.py')
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def run_setup(repository, tmp_path):
    """Run a copy of the set-up script with an interpreter made of the given shell lines."""

    def run(interpreter, *arguments):
        for name in ('setup.py', 'pyproject.toml', 'tools/setup.sh'):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(repository / name, tmp_path / name)
        python = tmp_path / 'my python3'
        python.write_text(f'#!/bin/sh\n{interpreter}\n')
        python.chmod(0o755)
        command = ['bash', str(tmp_path / 'tools' / 'setup.sh'), *arguments]
        environment = dict(os.environ, PYTHON=str(python))
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return run


SOURCES = [
    *('pybind.cpp', 'spconv_ops.cpp', 'contour_expand.cpp', 'psamask.cpp', 'nms.cpp', 'knn.cpp', 'info.cpp'),
    *('cpu/bbox_overlaps_cpu.cpp', 'cpu/psamask.cpp', 'cpu/roi_align.cpp', 'cpu/roi_align_rotated.cpp'),
    *('cpu/bezier_align.cpp', 'cpu/sparse_indice.cpp', 'cpu/nms_rotated.cpp', 'cpu/nms.cpp', 'cpu/voxelization.cpp'),
]


def test_translation_units_hold_every_source_once(build_mmcv):
    units = build_mmcv.translation_units(SOURCES)
    assert sorted(name for unit in units for name in unit) == sorted(SOURCES)
    assert ['pybind.cpp'] in units and ['spconv_ops.cpp'] in units
    unit_of = {name: index for index, unit in enumerate(units) for name in unit}
    assert len({unit_of[f'cpu/{name}.cpp'] for name in ('roi_align', 'roi_align_rotated', 'bezier_align')}) == 3
    for last in ('psamask.cpp', 'cpu/psamask.cpp', 'cpu/bbox_overlaps_cpu.cpp'):
        assert units[unit_of[last]][-1] == last


def test_merged_sources_include_the_originals(build_mmcv, tmp_path):
    (tmp_path / 'cpu').mkdir()
    for name in SOURCES:
        (tmp_path / name).write_text(f'// {name}\n')
    build_mmcv.merge_sources(tmp_path)
    units = sorted(tmp_path.rglob('*.cpp'))
    assert [unit.name for unit in units] == [f'unit_{index}.cpp' for index in range(8)]
    included = [line.split('"')[1] for unit in units for line in unit.read_text().splitlines()]
    assert sorted((tmp_path / name).read_text() for name in included) == sorted(f'// {name}\n' for name in SOURCES)


def test_unknown_sources_are_not_merged(build_mmcv, tmp_path):
    (tmp_path / 'other.cpp').touch()
    with pytest.raises(build_mmcv.LayoutError, match='missing .*pybind.cpp'):
        build_mmcv.merge_sources(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['other.cpp']


def test_missing_compiler_is_named(build_mmcv, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(build_mmcv.BuildError, match='no-such-compiler.*apt-get install g\\+\\+'):
        build_mmcv.check_compiler()


def test_kept_wheel_is_not_built_again(build_mmcv, tmp_path, monkeypatch):
    import sys

    import torch

    monkeypatch.setattr(build_mmcv, 'check_compiler', lambda: pytest.fail('builds again'))
    tag = f'cp{sys.version_info.major}{sys.version_info.minor}'
    folder = tmp_path / f'torch-{torch.__version__}-{build_mmcv.operator_device()}'
    folder.mkdir()
    wheel = folder / f'onedl_mmcv-1.2.3-{tag}-{tag}-linux_x86_64.whl'
    wheel.touch()
    assert build_mmcv.cached_wheel(tmp_path, '1.2.3', 1) == wheel


def test_pure_wheel_is_refused(build_mmcv, tmp_path):
    import zipfile

    wheel = tmp_path / 'onedl_mmcv-1.2.3-py3-none-any.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.writestr('mmcv/__init__.py', '')
    with pytest.raises(build_mmcv.BuildError, match='no compiled operators'):
        build_mmcv.check_wheel(wheel, tmp_path)


@pytest.mark.parametrize(
    ('interpreter', 'message'),
    [
        ('echo 3.9', 'No Python 3.10 to 3.13 found'),
        ('exit 1', 'No Python 3.10 to 3.13 found'),
        ('case "$2" in *version_info*) echo 3.12;; *) exit 1;; esac', 'sudo apt-get install python3.12-venv'),
    ],
)
def test_setup_asks_for_a_suitable_python(run_setup, tmp_path, interpreter, message):
    result = run_setup(interpreter)
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / '.venv').exists()


def test_setup_refuses_unknown_levels(run_setup):
    result = run_setup('exit 1', 'everything')
    assert result.returncode == 2
    assert 'Usage: bash tools/setup.sh [quickstart|test]' in result.stderr


def test_interrupted_setup_starts_over(run_setup, tmp_path):
    (tmp_path / '.venv').mkdir()
    (tmp_path / '.venv' / '.mm_sop_setup').write_text('incomplete\n')
    (tmp_path / '.venv' / 'half').touch()
    interpreter = 'case "$1$2" in *"%d.%d"*) echo 3.12;; -mvenv) echo stopped here; exit 1;; esac'
    result = run_setup(interpreter)
    assert result.returncode == 1 and 'stopped here' in result.stderr
    assert not (tmp_path / '.venv' / 'half').exists()
    assert (tmp_path / '.venv' / '.mm_sop_setup').read_text() == 'incomplete\n'


@pytest.fixture
def run_quickstart(repository, tmp_path):
    """Run a copy of the quick start whose steps are replaced by lines in ``calls``."""
    report = (
        'echo "train $CUDA_VISIBLE_DEVICES$PYTHON $*" >>calls; mkdir -p "$4"; echo TABLE >"$4/knn.md"; exit ${TRAIN:-0}'
    )
    stubs = {
        'tools/setup.sh': 'echo "setup $*" >>calls',
        'tools/dist_train.sh': report,
        '.venv/bin/python': 'echo "python $*" >>calls',
    }
    for name, line in stubs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f'#!/bin/sh\n{line}\n')
        (tmp_path / name).chmod(0o755)
    shutil.copy(repository / 'tools' / 'quickstart.sh', tmp_path / 'tools')

    def run(*arguments, **environment):
        (tmp_path / 'calls').write_text('')
        command = ['bash', str(tmp_path / 'tools' / 'quickstart.sh'), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, cwd='/', env={**os.environ, **environment})
        # Training in bfloat16 depends on the processor.
        return result, (tmp_path / 'calls').read_text().replace(' --amp', '').splitlines()

    return run


def test_quickstart_runs_all_steps_and_shows_the_results(run_quickstart, tmp_path):
    result, calls = run_quickstart()
    assert result.returncode == 0, result.stderr
    assert calls == [
        'setup quickstart',
        'python tools/prepare_data.py composites --out data/composites --only pretrain classes',
        'train .venv/bin/python configs/sop/quickstart.py 2 --work-dir work_dirs/quickstart --resume',
    ]
    *_, times, report = result.stdout.splitlines()
    assert 'TABLE' in result.stdout
    assert all(f'{step} ' in times for step in ('Environment', 'Images', 'Training'))
    assert report == f'Report: {tmp_path}/work_dirs/quickstart/report/index.html'


def test_fast_quickstart_has_a_work_dir_of_its_own(run_quickstart):
    _, calls = run_quickstart('--fast')
    assert calls[-1].endswith('work_dirs/quickstart-fast --resume --cfg-options train_cfg.max_epochs=1')


def test_quickstart_keeps_earlier_results_unless_restarted(run_quickstart, tmp_path):
    checkpoint = tmp_path / 'work_dirs' / 'quickstart' / 'iter_1.pth'
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    run_quickstart()
    assert checkpoint.exists()
    run_quickstart('--restart')
    assert not checkpoint.exists()


def test_failed_quickstart_says_which_step(run_quickstart):
    result, _ = run_quickstart('--fast', TRAIN='1')
    assert result.returncode == 1
    assert 'Training failed' in result.stderr and 'quickstart.sh --fast' in result.stderr
    assert 'Report:' not in result.stdout


def test_interrupted_quickstart_lets_the_training_save(run_quickstart, tmp_path):
    """The signal comes from the training itself, to its parent: the quick start."""
    lines = ["trap 'echo saved >>calls; exit 143' TERM", 'kill -TERM $PPID', 'for i in $(seq 600); do sleep 0.1; done']
    (tmp_path / 'tools/dist_train.sh').write_text('\n'.join(lines))
    result, calls = run_quickstart('--restart')
    assert (result.returncode, calls[-1]) == (130, 'saved')
    assert result.stderr.rstrip().endswith(f'To go on where it stopped: bash {tmp_path}/tools/quickstart.sh')


def test_quickstart_refuses_unknown_arguments(run_quickstart):
    result, calls = run_quickstart('--slow')
    assert result.returncode == 2 and calls == []
    assert 'unknown argument: --slow' in result.stderr and 'Usage: bash tools/quickstart.sh' in result.stderr
