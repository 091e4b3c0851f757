"""Time training steps of a config: images per second, memory, fraction of the device's peak.

``python tools/benchmarks/train_speed.py configs/sop/vitb.py`` needs no data: it makes images of noise. With
``--data`` it also measures with the whole input pipeline on real images.
"""

import argparse
import copy
import statistics
import sys
import tempfile
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
from harness import ROOT, markdown_table, processor_name, take_turns, write_report
from mmengine.config import Config, DictAction
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import LOOPS
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from mm_sop.engine import PretrainRunner
from mm_sop.engine.launch import enable_bfloat16, set_data_root
from mm_sop.utils.config import merge_options

VARIANTS = {
    'eager': {},
    'compiled': dict(compile_blocks=True),
    'checkpointed': dict(activation_checkpointing=['backbone.layers.*']),
}
# Dense bf16 TFLOP/s according to the manufacturers' data sheets
PEAK_TFLOPS = {'H200': 989.0, 'H100': 989.0, 'A100': 312.0, 'L40S': 362.0, '4090': 165.0}

FOOTNOTE = """\
Medians over turns (quartiles in brackets); the variants take turns in one process. A step is augmentation (with real
input only), forward, backward, optimizer and teacher update. *MFU* is the fraction of the device's dense bf16 peak that
the step's matrix products and convolutions reach; recomputed activations do not count as work. Memory is the peak of
the CUDA memory that PyTorch allocated during a step.
"""


@LOOPS.register_module()
class ManualLoop(EpochBasedTrainLoop):
    """Trains nothing: the runner gets ready for training, and the benchmark makes the steps itself."""

    def run(self) -> torch.nn.Module:
        return self.runner.model.train()


class Trainer:
    """A runner that is ready for training, and its batches."""

    def __init__(self, cfg: Config, work_dir: str, options: dict, synthetic: bool) -> None:
        cfg = copy.deepcopy(cfg)
        cfg.merge_from_dict(dict(work_dir=work_dir, experiment_name=str(id(self)), **options))
        self.runner = PretrainRunner.from_cfg(cfg)
        self.runner.train()
        loader = self.runner.train_dataloader
        self.batch_size = loader.batch_size
        self.batches = repeat(next(iter(loader))) if synthetic else chain.from_iterable(repeat(loader))

    def step(self, iterations: int = 1) -> None:
        for _ in range(iterations):
            self.runner.model.train_step(next(self.batches), self.runner.optim_wrapper)
            if hasattr(self.runner.model, 'update_teacher'):
                self.runner.model.update_teacher(0.99)

    def count_flops(self) -> int:
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops()


def measure(trainers: dict[str, Trainer], turns: int, iterations: int) -> dict[str, list[float]]:
    """Seconds of an iteration in every turn."""
    seconds = {name: [] for name in trainers}
    steps = {name: partial(trainer.step, iterations) for name, trainer in trainers.items()}
    # The first turn warms up: compilation, choice of algorithms, caches.
    for timed in take_turns(steps, turns, warm_up=1):
        seconds[timed.name].append(timed.seconds / iterations)
    return seconds


def peak_memory_mib(trainer: Trainer) -> float | None:
    """CUDA memory that PyTorch allocated at most during a step; None on the CPU, where variants share the process."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    trainer.step()
    return torch.cuda.max_memory_allocated() / 2**20


def device_peak(given: float | None) -> float | None:
    """TFLOP/s of the device, None if unknown."""
    if given or not torch.cuda.is_available():
        return given
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def summarize(trainer: Trainer, seconds: list[float], flops: int, peak: float | None, baseline: list[float]) -> dict:
    rates = [trainer.batch_size / value for value in seconds]
    tflops = flops / statistics.median(seconds) / 1e12
    return dict(
        images_per_second=dict(median=statistics.median(rates), quartiles=statistics.quantiles(rates)[::2]),
        milliseconds=1000 * statistics.median(seconds),
        speed_ratio=statistics.median(first / second for first, second in zip(baseline, seconds, strict=True)),
        tflops=tflops,
        mfu=tflops / peak if peak else None,
        memory_mib=peak_memory_mib(trainer),
    )


def format_page(report: dict) -> str:
    rows = []
    for source, variants in report['results'].items():
        for name, row in variants.items():
            low, high = row['images_per_second']['quartiles']
            rate = f'{row["images_per_second"]["median"]:.1f} ({low:.1f}-{high:.1f})'
            mfu = '–' if row['mfu'] is None else f'{row["mfu"]:.1%}'
            memory = '–' if row['memory_mib'] is None else f'{row["memory_mib"]:,.0f}'
            rows.append([source, name, rate, f'{row["milliseconds"]:.1f}', f'{row["speed_ratio"]:.2f}', mfu, memory])
    titles = ['input', 'variant', 'images/s', 'ms', 'times the first', 'MFU', 'memory (MiB)']
    return (
        f'# Training speed of `{report["config"]}`\n\n{report["environment"]}\n\n'
        f'Batch {report["batch_size"]}, {report["gflops_per_image"]:,.1f} GFLOP for an image and step.\n\n'
        f'{markdown_table(titles, rows, ["left"] * 2 + ["right"] * 5)}\n\n'
        f'{FOOTNOTE}\nMade by `{report["command"]}`.\n'
    )


def make_noise(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        pixels = generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{number:05}.png', compress_level=0)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Time training steps of a config.')
    parser.add_argument('config')
    parser.add_argument('--data', type=Path, help='folder of images, to measure with real input as well')
    parser.add_argument('--variants', nargs='+', choices=VARIANTS, default=['eager'])
    parser.add_argument('--batch-size', type=int, help='images in a step; that of the config by default')
    parser.add_argument('--turns', type=int, default=5, help='of each variant, after one that is not counted')
    parser.add_argument('--iterations', type=int, default=20, help='in a turn')
    parser.add_argument('--amp', action='store_true', help='bfloat16')
    parser.add_argument('--peak-tflops', type=float, help='of the device, where its name does not tell')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/benchmarks/train_speed.json')
    args = parser.parse_args()
    if args.turns < 2:
        parser.error('--turns must be at least 2')
    return args


def prepare(args: argparse.Namespace) -> Config:
    cfg = Config.fromfile(args.config)
    merge_options(cfg, args.cfg_options)
    if args.batch_size:
        cfg.train_dataloader.batch_size = args.batch_size
    if args.amp:
        enable_bfloat16(cfg)
    # More epochs than will be timed, so that accumulated gradients are never divided by a shorter remainder.
    cfg.train_cfg = dict(type='mmpretrain.ManualLoop', max_epochs=10**6)
    for split in ('val', 'test'):
        cfg.update({f'{split}_{name}': None for name in ('dataloader', 'cfg', 'evaluator')})
    cfg.update(default_hooks={}, custom_hooks=[], param_scheduler=None, load_from=None, resume=False)
    cfg.update(log_level='WARNING', launcher='none', vis_backends=[], visualizer=None)
    return cfg


def main() -> None:
    args = parse_args()
    cfg = prepare(args)
    peak = device_peak(args.peak_tflops)
    results, flops = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        noise = Path(folder, 'noise')
        make_noise(noise, cfg.train_dataloader.batch_size)
        for source, images in (('synthetic', noise), ('real', args.data)):
            if images is None:
                continue
            set_data_root(cfg, str(images))
            trainers = {
                name: Trainer(cfg, folder, VARIANTS[name], synthetic=source == 'synthetic') for name in args.variants
            }
            first = args.variants[0]
            seconds = measure(trainers, args.turns, args.iterations)
            flops = flops or Trainer(cfg, folder, {}, synthetic=True).count_flops()
            results[source] = {
                name: summarize(trainer, seconds[name], flops, peak, seconds[first])
                for name, trainer in trainers.items()
            }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    report = dict(
        config=args.config,
        command=' '.join(['python', *sys.argv]),
        environment=f'{device}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}.',
        batch_size=cfg.train_dataloader.batch_size,
        gflops_per_image=flops / cfg.train_dataloader.batch_size / 1e9,
        results=results,
    )
    write_report(report, args.out, format_page(report))


if __name__ == '__main__':
    main()
