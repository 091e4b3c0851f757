"""What a whole grid of linear classifiers costs beside one: ViT-S/16 at 224 pixels, 1,000 classes.

python tools/benchmarks/linear_grid.py writes docs/benchmarks/linear_grid.json and linear_grid.md. A step of the linear
protocol encodes a batch of augmented images and trains all classifiers on it.
"""

from functools import partial
from pathlib import Path
from statistics import median

import torch
from harness import markdown_table, parse_options, take_turns, write_report
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

import mm_sop  # noqa: F401
from mm_sop.encoders.encoder import Encoder, EncoderSpecification
from mm_sop.evaluation.classification.linear import LinearProtocol
from mm_sop.evaluation.classification.linear_grid import LinearGrid
from mm_sop.evaluation.features.extraction import READOUTS, encode_arrays

PAGE = """\
# Cost of a grid of linear classifiers

ViT-S/16 at 224 pixels on {device}, batch {batch_size}, {classes:,} classes, {classifiers} classifiers on three kinds of
features against one; median of {repeats} steps, which take turns.

{table}

A step with the grid takes {ratio:.3f} times as long as one with a single classifier.

Command: `python tools/benchmarks/linear_grid.py`
"""
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
    choices = list(LinearProtocol().choices)
    features = encode(encoder, images, choices)
    one, grid = (build_grids(features, single, device) for single in (True, False))
    parts = dict(
        encode=partial(encode, encoder, images, choices),
        one_head=partial(train, one, features, labels),
        grid=partial(train, grid, features, labels),
    )
    seconds = {name: [] for name in parts}
    for timed in take_turns(parts, repeats, warm_up=1):
        seconds[timed.name].append(round(timed.seconds, 5))
    return seconds


def summarize(seconds: dict[str, list[float]]) -> dict:
    rows = zip(*seconds.values(), strict=True)
    ratios = [(encoding + grid) / (encoding + one) for encoding, one, grid in rows]
    return dict(median_seconds={name: median(values) for name, values in seconds.items()}, ratio=median(ratios))


def main() -> None:
    output = Path('docs/benchmarks/linear_grid.json')
    args = parse_options(__doc__, batch_size=128, repeats=5, threads=2, out=output)
    init_default_scope('mmpretrain')
    torch.set_num_threads(args.threads)
    protocol, device = LinearProtocol(), get_device()
    seconds = measure(args.batch_size, args.repeats, device)
    count = len(protocol.choices) * len(protocol.heads)
    sizes = dict(batch_size=args.batch_size, repeats=args.repeats, threads=args.threads, classifiers=count)
    name = torch.cuda.get_device_name() if device == 'cuda' else 'CPU'
    record = dict(device=name, torch=torch.__version__, **sizes, seconds=seconds, **summarize(seconds))
    titles = {'encode': 'encoding the batch', 'one_head': 'one classifier', 'grid': 'the whole grid'}
    rows = [(titles[part], f'{value:.3f}') for part, value in record['median_seconds'].items()]
    table = markdown_table(['part of a step', 'seconds'], rows)
    write_report(record, args.out, PAGE.format(**record, classes=CLASSES, table=table))


if __name__ == '__main__':
    main()
