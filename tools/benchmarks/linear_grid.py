"""What a whole grid of linear classifiers costs beside one: ViT-S/16 at 224 pixels, 1,000 classes.

python tools/benchmarks/linear_grid.py writes docs/benchmarks/linear_grid.json and linear_grid.md. A step of the linear
protocol encodes a batch of augmented images and trains all classifiers on it.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

import mm_sop  # noqa: F401
from mm_sop.encoders.encoder import Encoder, EncoderSpecification
from mm_sop.evaluation.classification.linear import LinearProtocol
from mm_sop.evaluation.classification.linear_grid import LinearGrid
from mm_sop.evaluation.features.readouts import READOUTS, encode_arrays
from mm_sop.utils.files import write_atomically

CLASSES = 1000
BACKBONE = dict(type='VisionTransformer', arch='deit-small', img_size=224, patch_size=16, out_type='raw')


def build_grids(features: dict, single: bool, device: str) -> dict[str, LinearGrid]:
    """All classifiers of the protocol, or only the first one."""
    heads = LinearProtocol().heads
    chosen = ['global'] if single else list(features)
    return {
        name: LinearGrid(features[name].shape[1], CLASSES, heads[:1] if single else heads, device=device)
        for name in chosen
    }


class Timer:
    """Seconds of calls, after the device is done."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, function, *args):
        started = time.perf_counter()
        result = function(*args)
        if self.device == 'cuda':
            torch.cuda.synchronize()
        return result, time.perf_counter() - started


def encode(encoder: Encoder, images: torch.Tensor, choices: list[str]) -> dict[str, torch.Tensor]:
    device = next(encoder.parameters()).device
    names = list(dict.fromkeys(array for choice in choices for array in READOUTS[choice]))
    with torch.no_grad():
        arrays = encode_arrays(encoder, names, torch.float32, dict(inputs=images, data_samples=[]))
    return {choice: torch.cat([arrays[name] for name in READOUTS[choice]], 1).to(device) for choice in choices}


def train(grids: dict[str, LinearGrid], features: dict, labels: torch.Tensor) -> None:
    for name, grid in grids.items():
        grid.step(features[name], labels, 0.5)


def measure(batch_size: int, repeats: int, device: str) -> dict[str, list[float]]:
    torch.manual_seed(0)
    specification = EncoderSpecification(None, (120.0,) * 3, (60.0,) * 3, channel_order='bgr')
    encoder = Encoder(MODELS.build(BACKBONE), specification).to(device)
    images = torch.randint(0, 256, (batch_size, 3, 224, 224), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (batch_size,), device=device)
    choices, timer = list(LinearProtocol().choices), Timer(device)
    features = encode(encoder, images, choices)
    one, grid = (build_grids(features, single, device) for single in (True, False))
    seconds = dict(encode=[], one_head=[], grid=[])
    for repeat in range(repeats + 1):
        features, encoding = timer(encode, encoder, images, choices)
        times = dict(encode=encoding)
        times['one_head'] = timer(train, one, features, labels)[1]
        times['grid'] = timer(train, grid, features, labels)[1]
        print(f'repeat {repeat} of {repeats}: {times}', flush=True)
        if repeat:
            for name, value in times.items():
                seconds[name].append(round(value, 5))
    return seconds


def summarize(seconds: dict[str, list[float]]) -> dict:
    rows = zip(*seconds.values(), strict=True)
    ratios = [(encoding + grid) / (encoding + one) for encoding, one, grid in rows]
    return dict(median_seconds={name: median(values) for name, values in seconds.items()}, ratio=median(ratios))


def format_page(record: dict) -> str:
    seconds = record['median_seconds']
    return '\n'.join(
        [
            '# Cost of a grid of linear classifiers',
            '',
            f'ViT-S/16 at 224 pixels on {record["device"]}, batch {record["batch_size"]}, {CLASSES:,} classes, '
            f'{record["classifiers"]} classifiers on three kinds of',
            f'features against one; median of {record["repeats"]} steps, which take turns.',
            '',
            '| part of a step | seconds |',
            '| --- | ---: |',
            f'| encoding the batch | {seconds["encode"]:.3f} |',
            f'| one classifier | {seconds["one_head"]:.3f} |',
            f'| the whole grid | {seconds["grid"]:.3f} |',
            '',
            f'A step with the grid takes {record["ratio"]:.3f} times as long as one with a single classifier.',
            '',
            'Command: `python tools/benchmarks/linear_grid.py`',
            '',
        ]
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--out', type=Path, default=Path('docs/benchmarks/linear_grid.json'))
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    init_default_scope('mmpretrain')
    torch.set_num_threads(args.threads)
    protocol, device = LinearProtocol(), get_device()
    seconds = measure(args.batch_size, args.repeats, device)
    count = len(protocol.choices) * len(protocol.heads)
    sizes = dict(batch_size=args.batch_size, repeats=args.repeats, threads=args.threads, classifiers=count)
    name = torch.cuda.get_device_name() if device == 'cuda' else 'CPU'
    record = dict(device=name, torch=torch.__version__, **sizes, seconds=seconds, **summarize(seconds))
    write_atomically(args.out, json.dumps(record, indent=1))
    write_atomically(args.out.with_suffix('.md'), format_page(record))
    print(format_page(record))


if __name__ == '__main__':
    main()
