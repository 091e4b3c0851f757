"""Compiles the pinned MMCV with its operators into a wheel, and keeps the wheel for the next environment.

MMCV is published as sources only, 78 C++ files of which each includes all of torch. For a CPU build they are merged
into 8 translation units first, which takes a minute instead of ten. The wheel fits one torch version and one Python.

Prints the path of the wheel on standard output, everything else on standard error.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = Path('mmcv', 'ops', 'csrc', 'pytorch')
ORDINARY_HINT = 'compiling file by file instead, which takes 6 to 15 minutes'
GIGABYTES_PER_JOB = 2


class BuildError(RuntimeError):
    """The wheel cannot be built; the message says what to do."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cache', type=Path, default=default_cache(), help='folder of wheels (%(default)s)')
    parser.add_argument('--jobs', type=int, default=default_jobs(), help='parallel compilers (%(default)s)')
    args = parser.parse_args()
    try:
        print(cached_wheel(args.cache, pinned_version(), args.jobs))
    except BuildError as error:
        sys.exit(f'build_mmcv: {error}')


def default_cache():
    return Path(os.environ.get('MM_SOP_CACHE') or ROOT / '.cache') / 'wheels'


def default_jobs():
    """Use every core that has enough free memory for a compiler."""
    gigabytes = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), int(gigabytes / GIGABYTES_PER_JOB)))


def pinned_version():
    """Read the version of MMCV that pyproject.toml asks for."""
    match = re.search(r'"onedl-mmcv==([^"]+)"', (ROOT / 'pyproject.toml').read_text())
    if match is None:
        raise BuildError(f'{ROOT / "pyproject.toml"} has no dependency of the form "onedl-mmcv==VERSION"')
    return match.group(1)


def cached_wheel(cache, version, jobs):
    """Return the wheel for this torch and this Python, built if the cache has none.

    The folder ``cache`` holds a subfolder for each torch version and kind of operators.
    """
    import torch

    device = operator_device()
    folder = cache.resolve() / f'torch-{torch.__version__}-{device}'
    pattern = f'onedl_mmcv-{version}-cp{sys.version_info.major}{sys.version_info.minor}-*.whl'
    for wheel in folder.glob(pattern):
        return wheel
    check_compiler()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.build-') as work:
        source = download_source(version, Path(work))
        wheel = build_wheel(source, device, jobs)
        check_wheel(wheel, Path(work))
        return wheel.replace(folder / wheel.name)


def operator_device():
    """Tell whether the operators are compiled for 'cuda' (a device or FORCE_CUDA=1, and a toolkit) or 'cpu'."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, ROCM_HOME

    if not torch.cuda.is_available() and os.environ.get('FORCE_CUDA', '0') != '1':
        return 'cpu'
    if CUDA_HOME is None and ROCM_HOME is None:
        say('there is a GPU but no CUDA toolkit (nvcc, CUDA_HOME): the operators will run on the CPU only')
        return 'cpu'
    return 'cuda'


def check_compiler():
    compiler = os.environ.get('CXX', 'c++')
    if shutil.which(compiler) is None:
        raise BuildError(f'no C++ compiler ({compiler}); on Debian or Ubuntu: sudo apt-get install g++')
    header = Path(sysconfig.get_paths()['include'], 'Python.h')
    if not header.exists():
        package = f'python{sys.version_info.major}.{sys.version_info.minor}-dev'
        raise BuildError(f'{header} is missing; on Debian or Ubuntu: sudo apt-get install {package}')


def download_source(version, work):
    """Download and unpack the source distribution below ``work``; return its folder."""
    command = ['download', '--no-deps', '--no-build-isolation', '--no-cache-dir', '--no-binary', 'onedl-mmcv']
    run_pip([*command, '--dest', str(work), f'onedl-mmcv=={version}'], work)
    (archive,) = work.glob('*.tar.gz')
    # Older releases of Python 3.10 and 3.11 have no filters.
    options = dict(filter='data') if hasattr(tarfile, 'data_filter') else {}
    with tarfile.open(archive) as file:
        file.extractall(work, **options)
    return work / archive.name.removesuffix('.tar.gz')


def build_wheel(source, device, jobs):
    """Build the wheel into the parent folder of ``source``, with merged translation units where that works."""
    if device == 'cuda':
        say(f'compiling the CUDA operators with {jobs} jobs, which takes some minutes')
        return compile_wheel(source, device, jobs)
    pristine = source.parent / 'pristine'
    shutil.copytree(source, pristine)
    try:
        merge_sources(source / SOURCES)
        say(f'compiling with {jobs} jobs')
        return compile_wheel(source, device, jobs)
    except LayoutError as error:
        say(f'{error}; {ORDINARY_HINT}')
    except BuildError as error:
        say(f'{error}\nThe merged build failed; {ORDINARY_HINT}')
    return compile_wheel(pristine, device, jobs)


class LayoutError(RuntimeError):
    """The sources are not those that the merging was written for."""


def merge_sources(folder):
    """Replace the C++ files of ``mmcv/ops/csrc/pytorch`` and of its ``cpu`` by a few that include them all.

    The originals stay beside them under a name that MMCV's setup.py does not collect. If a file is missing that needs a
    place of its own, :class:`LayoutError` is raised and nothing was changed.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in [*folder.glob('*.cpp'), *folder.glob('cpu/*.cpp')])
    units = translation_units(names)
    for name in names:
        (folder / name).rename(folder / f'{name}.inc')
    for index, unit in enumerate(units):
        (folder / f'unit_{index}.cpp').write_text(''.join(f'#include "{name}.inc"\n' for name in unit))


def translation_units(names):
    """Distribute the sources over 8 units, in the order of inclusion, so that none defines a helper or macro twice."""
    alone = ['pybind.cpp', 'spconv_ops.cpp']
    # These leave macros behind, so nothing may follow them but each other.
    last, cpu_last = ['contour_expand.cpp', 'psamask.cpp'], ['cpu/bbox_overlaps_cpu.cpp', 'cpu/psamask.cpp']
    # All three define bilinear_interpolate and its gradient.
    apart = ['cpu/roi_align.cpp', 'cpu/roi_align_rotated.cpp', 'cpu/bezier_align.cpp']
    special = {*alone, *last, *cpu_last, *apart}
    missing = special - set(names)
    if missing:
        raise LayoutError(f'unexpected layout of the MMCV sources, missing {sorted(missing)}')
    others = [name for name in names if name not in special]
    main = [name for name in others if '/' not in name]
    sparse = [name for name in others if name.startswith('cpu/sparse')]
    rotated = [name for name in others if name.startswith('cpu/') and re.search('rotated|quadri', name)]
    cpu = [name for name in others if name not in {*main, *sparse, *rotated}]
    return [
        *([name] for name in alone),
        main[::2],
        main[1::2] + last,
        [apart[0], *cpu[::2]],
        [apart[1], *cpu[1::2], cpu_last[0]],
        [apart[2], *sparse],
        [*rotated, cpu_last[1]],
    ]


def compile_wheel(source, device, jobs):
    """Run MMCV's own build on ``source``; return the wheel, which lies beside it."""
    environment = dict(os.environ, MAX_JOBS=str(jobs), CFLAGS=f'-g0 -O2 {os.environ.get("CFLAGS", "")}')
    if device == 'cpu':
        environment.update(CUDA_VISIBLE_DEVICES='', FORCE_CUDA='0')
    folder = source.parent / 'wheel'
    command = ['wheel', '-v', '--no-cache-dir', '--no-deps', '--no-build-isolation', '--wheel-dir', str(folder)]
    run_pip([*command, str(source)], source.parent, environment)
    (wheel,) = folder.glob('*.whl')
    return wheel


def run_pip(arguments, work, environment=None):
    """Run pip, show the compiler's progress, and raise with the last lines of the log on failure."""
    log = work / 'pip.log'
    with log.open('w') as file, subprocess.Popen(
        [sys.executable, '-m', 'pip', *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
    ) as process:  # fmt: skip
        for line in process.stdout:
            file.write(line)
            progress = re.match(r'\s*\[(\d+)/(\d+)\] ', line)
            if progress:
                say(f'compiled {progress.group(1)} of {progress.group(2)} units')
    if process.returncode:
        tail = '\n'.join(log.read_text().splitlines()[-30:])
        raise BuildError(f'pip {arguments[0]} failed with exit code {process.returncode}:\n{tail}')


def check_wheel(wheel, work):
    """Load the compiled operators of a wheel in a process of its own."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if re.fullmatch(r'mmcv/_ext\.[^/]*so', name)]
        if not names:
            raise BuildError(f'{wheel.name} has no compiled operators: MMCV was built where torch is not importable')
        library = archive.extract(names[0], work)
    code = (
        'import sys, torch\nfrom importlib.util import module_from_spec, spec_from_file_location\n'
        'spec = spec_from_file_location("_ext", sys.argv[1])\n'
        'module = module_from_spec(spec)\nspec.loader.exec_module(module)\nmodule.nms'
    )
    result = subprocess.run([sys.executable, '-c', code, library], capture_output=True, text=True)
    if result.returncode:
        raise BuildError(f'the compiled operators do not load:\n{result.stderr}')


def say(message):
    print(f'build_mmcv: {message}', file=sys.stderr, flush=True)


if __name__ == '__main__':
    main()
