"""How far the tests that train stay from their bounds, over seeds, numbers of threads and instruction sets.

python tools/benchmarks/learning_margins.py writes docs/benchmarks/learning_margins.json and learning_margins.md. Every
test marked ``learning`` runs with each seed, and with the first seed in two threads and with the instruction sets of
older processors, to which oneDNN, MKL and PyTorch are limited.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import torch
from composites_runs import processor_name
from mmengine.utils import track_iter_progress

from mm_sop.utils.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
INSTRUCTION_SETS = {
    'SSE4.1': dict(ONEDNN_MAX_CPU_ISA='SSE41', ATEN_CPU_CAPABILITY='default', MKL_ENABLE_INSTRUCTIONS='SSE4_2'),
    'AVX2': dict(ONEDNN_MAX_CPU_ISA='AVX2', ATEN_CPU_CAPABILITY='avx2', MKL_ENABLE_INSTRUCTIONS='AVX2'),
    'best': {},
}


def older(instructions: str) -> bool:
    """Whether an instruction set is older than the best of this processor."""
    return instructions != 'best' and instructions != torch.backends.cpu.get_cpu_capability()


def run_tests(seed: int, threads: int, instructions: str) -> dict[str, dict]:
    """What the tests compare in one setting, by test and name."""
    settings = dict(INSTRUCTION_SETS[instructions], MM_SOP_TEST_SEED=str(seed), OMP_NUM_THREADS=str(threads))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, 'report.xml')
        command = [sys.executable, '-m', 'pytest', '-m', 'learning', f'--junitxml={report}', '-p', 'no:cacheprovider']
        environment = dict(os.environ, **settings)
        finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if not report.is_file():
            raise SystemExit(f'pytest wrote no report:\n{finished.stdout}{finished.stderr}')
        cases = list(ElementTree.parse(report).iter('testcase'))
    return {
        f'{case.get("name")}: {item.get("name")}': json.loads(item.get('value'))
        for case in cases
        for item in case.iter('property')
    }


def summarize(runs: list[dict]) -> dict[str, dict]:
    """Bound, spread and failures of every comparison."""
    values = defaultdict(list)
    bounds = {}
    for run in runs:
        for name, found in run['values'].items():
            values[name].append(found['value'])
            bounds[name] = {key: found[key] for key in ('above', 'below') if found[key] is not None}
    return {
        name: dict(
            bounds[name],
            lowest=min(found),
            highest=max(found),
            runs=len(found),
            failed=sum(
                not bounds[name].get('above', -float('inf')) < value < bounds[name].get('below', float('inf'))
                for value in found
            ),
        )
        for name, found in values.items()
    }


def format_table(record: dict) -> str:
    lines = [
        '# Margins of the tests that train',
        '',
        f'`{record["command"]}` on {record["processor"]}, PyTorch {record["torch"]}: {len(record["runs"])} runs of the '
        f'tests marked `learning`: {len(record["seeds"])} seeds; the first one also in two threads and with the '
        f'instruction sets {" and ".join(filter(older, INSTRUCTION_SETS))}.',
        '',
        '| test and value | bound | lowest | highest | failed |',
        '| --- | ---: | ---: | ---: | ---: |',
    ]
    for name, row in record['results'].items():
        bound = f'> {row["above"]:.3g}' if 'above' in row else f'< {row["below"]:.3g}'
        cells = (name, bound, f'{row["lowest"]:.3g}', f'{row["highest"]:.3g}', f'{row["failed"]}/{row["runs"]}')
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=list(range(4)))
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/benchmarks/learning_margins.json')
    args = parser.parse_args()
    settings = [dict(seed=seed, threads=1, instructions='best') for seed in args.seeds]
    settings.append(dict(settings[0], threads=2))
    settings += [
        dict(settings[0], instructions=instructions) for instructions in INSTRUCTION_SETS if older(instructions)
    ]
    started = time.perf_counter()
    runs = [dict(setting, values=run_tests(**setting)) for setting in track_iter_progress(settings)]
    record = dict(
        command='python tools/benchmarks/learning_margins.py',
        processor=f'{processor_name()} ({torch.backends.cpu.get_cpu_capability()})',
        torch=torch.__version__,
        minutes=round((time.perf_counter() - started) / 60, 1),
        seeds=args.seeds,
        results=summarize(runs),
        runs=runs,
    )
    write_atomically(args.out, json.dumps(record, indent=1))
    write_atomically(args.out.with_suffix('.md'), format_table(record))
    print('\n' + format_table(record))


if __name__ == '__main__':
    main()
