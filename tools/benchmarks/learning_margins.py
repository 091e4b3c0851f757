"""How far the tests that train stay from their bounds, over seeds, numbers of threads and instruction sets.

python tools/benchmarks/learning_margins.py writes docs/benchmarks/learning_margins.json and learning_margins.md. Every
test marked ``learning`` runs with each seed, and with the first seed in two threads and with the instruction sets of
older processors, to which oneDNN, MKL and PyTorch are limited.
"""

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
from harness import ROOT, markdown_table, parse_options, processor_name, write_report
from mmengine.utils import track_iter_progress

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
    comparisons = defaultdict(list)
    for run in runs:
        for name, found in run['values'].items():
            comparisons[name].append(found)
    results = {}
    for name, all_found in comparisons.items():
        bounds = {key: all_found[-1][key] for key in ('above', 'below') if all_found[-1][key] is not None}
        low, high = bounds.get('above', -float('inf')), bounds.get('below', float('inf'))
        values = [found['value'] for found in all_found]
        failed = sum(not low < value < high for value in values)
        results[name] = dict(bounds, lowest=min(values), highest=max(values), runs=len(values), failed=failed)
    return results


def format_page(record: dict) -> str:
    rows = []
    for name, row in record['results'].items():
        bound = f'> {row["above"]:.3g}' if 'above' in row else f'< {row["below"]:.3g}'
        failed = f'{row["failed"]}/{row["runs"]}'
        rows.append([name, bound, f'{row["lowest"]:.3g}', f'{row["highest"]:.3g}', failed])
    return (
        '# Margins of the tests that train\n\n'
        f'`{record["command"]}` on {record["processor"]}, PyTorch {record["torch"]}: {len(record["runs"])} runs of the '
        f'tests marked `learning`: {len(record["seeds"])} seeds; the first one also in two threads and with the '
        f'instruction sets {" and ".join(filter(older, INSTRUCTION_SETS))}.\n\n'
        f'{markdown_table(["test and value", "bound", "lowest", "highest", "failed"], rows)}\n'
    )


def main() -> None:
    args = parse_options(__doc__, seeds=[0, 1, 2, 3], out=ROOT / 'docs/benchmarks/learning_margins.json')
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
    print()
    write_report(record, args.out, format_page(record))


if __name__ == '__main__':
    main()
