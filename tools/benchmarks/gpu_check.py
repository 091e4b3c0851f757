"""Check this project on a GPU: correctness, speed, host waits and memory, each step with a time limit of its own.

A step that fails or takes too long is recorded, and the others go on.
"""

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from harness import ROOT, markdown_table, processor_name, write_report

TOTAL_SECONDS = 480
_LAST_CHARACTERS = 4000


class Step(NamedTuple):
    """A command and its limit; ``{out}`` becomes a JSON file that it may write."""

    name: str
    command: str
    seconds: int


def plan_steps() -> list[Step]:
    """All steps, the most valuable ones first."""
    speed = 'tools/benchmarks/train_speed.py configs/sop/vitb.py --turns 3 --iterations 5 --out {out}'
    probe = 'tools/benchmarks/gpu_probe.py --out {out}'
    return [
        Step('CUDA tests', '-m pytest tests/test_cuda', 90),
        Step('host waits', f'{probe} waits configs/sop/vitb.py', 45),
        Step('NCCL, bf16', f'{probe} nccl bfloat16', 45),
        Step('fp16', f'{probe} nccl float16', 45),
        Step('ViT-B, batch 64', f'{speed} --batch-size 64', 60),
        Step('ViT-B, batch 128, compiled', f'{speed} --batch-size 128 --variants eager compiled', 150),
        Step('ViTDet at 1024 pixels', f'{probe} detector configs/detection/vitdet_vitb_100e_coco.py', 45),
    ]


def run_step(step: Step, folder: Path, seconds: float) -> dict:
    """Run one command; its state, seconds, result and, if it failed, the end of what it printed."""
    out = folder / 'result.json'
    out.unlink(missing_ok=True)
    command = [sys.executable, *shlex.split(step.command.format(out=out))]
    started = time.perf_counter()
    try:
        finished = subprocess.run(
            command, cwd=ROOT, timeout=seconds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        state, text = ('passed' if finished.returncode == 0 else f'exit code {finished.returncode}'), finished.stdout
    except subprocess.TimeoutExpired as error:
        state, text = f'stopped after {seconds:.0f} s', (error.stdout or b'').decode(errors='replace')
    record = dict(state=state, seconds=time.perf_counter() - started, command=shlex.join(['python', *command[1:]]))
    if out.is_file():
        record['result'] = json.loads(out.read_text())
    return record if state == 'passed' else dict(record, output=text[-_LAST_CHARACTERS:])


def run_all(steps: list[Step], total: float = TOTAL_SECONDS) -> dict[str, dict]:
    """Run the steps in order; those for which no time is left are recorded as such."""
    records, end = {}, time.perf_counter() + total
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            left = min(step.seconds, end - time.perf_counter())
            records[step.name] = (
                run_step(step, Path(folder), left) if left > 1 else dict(state='no time left', seconds=0)
            )
            print(f'{step.name}: {records[step.name]["state"]}', file=sys.stderr, flush=True)
    return records


def format_page(report: dict) -> str:
    rows = [[name, record['state'], f'{record["seconds"]:.0f}'] for name, record in report['steps'].items()]
    table = markdown_table(['step', 'state', 'seconds'], rows, ['left', 'left', 'right'])
    results = {name: record['result'] for name, record in report['steps'].items() if 'result' in record}
    details = ''.join(f'## {name}\n\n```json\n{json.dumps(each, indent=1)}\n```\n\n' for name, each in results.items())
    return f'# Check on a GPU\n\n{report["environment"]}\n\n{table}\n\n{details}Made by `{report["command"]}`.\n'


def describe_machine() -> str:
    device = torch.cuda.get_device_properties(0)
    driver = subprocess.run(
        ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'], capture_output=True, text=True
    ).stdout.strip()
    return (
        f'{device.name} with {device.total_memory / 2**30:.0f} GiB, driver {driver}, CUDA {torch.version.cuda}, '
        f'torch {torch.__version__}, Python {platform.python_version()}, {processor_name()}.'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dry-run', action='store_true', help='print the steps and run nothing')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/benchmarks/gpu_check.json')
    args = parser.parse_args()
    steps = plan_steps()
    if args.dry_run:
        for step in steps:
            print(f'{step.name} (at most {step.seconds} s): python {step.command}')
        return
    if not torch.cuda.is_available():
        sys.exit('gpu_check: PyTorch finds no CUDA device here; --dry-run prints what would run')
    report = dict(command='bash tools/benchmarks/gpu_check.sh', environment=describe_machine(), steps=run_all(steps))
    write_report(report, args.out, format_page(report))
    if any(record['state'] != 'passed' for record in report['steps'].values()):
        sys.exit(1)


if __name__ == '__main__':
    main()
