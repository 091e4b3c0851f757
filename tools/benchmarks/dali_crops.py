"""Times NVIDIA DALI on the CPU against this project's loading: decoding and the crops of `configs/sop/vitb.py`.

DALI gets the boxes of this project through its external source. Install it first: `pip install nvidia-dali-cuda120`.
"""

import statistics
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from harness import ROOT, markdown_table, parse_options, processor_name, take_turns, write_report
from input_pipeline import SIZE, make_photos
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import TRANSFORMS

import mm_sop  # noqa: F401

try:
    from nvidia import dali
    from nvidia.dali import fn, types
except ImportError:
    raise SystemExit('NVIDIA DALI is missing: pip install nvidia-dali-cuda120') from None

Box = tuple[int, int, int, int]


def build_pipeline(sides: list[int], batch_size: int) -> dali.Pipeline:
    """Decodes files and resizes a crop for each side."""

    @dali.pipeline_def(batch_size=batch_size, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)
    def decode_and_crop():
        image = fn.decoders.image(fn.external_source(name='files'), device='cpu', output_type=types.BGR)
        views = []
        for number, side in enumerate(sides):
            corner, size = fn.external_source(name=f'corner{number}'), fn.external_source(name=f'size{number}')
            crop = fn.slice(image, corner, size, axes=(0, 1), normalized_anchor=False, normalized_shape=False)
            views.append(fn.resize(crop, size=[side, side], interp_type=types.INTERP_CUBIC, antialias=True))
        return tuple(views)

    pipeline = decode_and_crop()
    pipeline.build()
    return pipeline


def crop_with_dali(pipeline: dali.Pipeline, paths: list[Path], boxes: list[list[Box]]) -> list[np.ndarray]:
    """Views of all images, (N, side, side, 3) for each view."""
    pipeline.feed_input('files', [np.frombuffer(path.read_bytes(), np.uint8) for path in paths])
    for number in range(len(boxes[0])):
        of_view = np.array([own[number] for own in boxes], np.int32)
        pipeline.feed_input(f'corner{number}', [*of_view[:, :2]])
        pipeline.feed_input(f'size{number}', [*of_view[:, 2:]])
    return [view.as_array() for view in pipeline.run()]


class Ours:
    """Loads an image and makes its crops from given boxes, (top, left, height, width)."""

    def __init__(self, config: Config) -> None:
        load, views = config.train_pipeline[:2]
        self.load = TRANSFORMS.build(load)
        counts = zip(views.transforms, views.num_views, strict=True)
        self.crops = [TRANSFORMS.build(steps[0]) for steps, count in counts for _ in range(count)]

    def draw(self) -> list[Box]:
        return [crop.rand_crop_params(np.broadcast_to(np.uint8(0), SIZE[::-1])) for crop in self.crops]

    def __call__(self, path: Path, boxes: list[Box]) -> list[np.ndarray]:
        loaded, views = self.load(dict(img_path=path)), []
        for crop, box in zip(self.crops, boxes, strict=True):
            crop.rand_crop_params = lambda _, box=box: box
            views.append(crop(dict(loaded))['img'])
        return views


def main() -> None:
    out = ROOT / 'docs/benchmarks/dali_crops.json'
    options = parse_options(__doc__, images=24, turns=15, config=str(ROOT / 'configs/sop/vitb.py'), out=str(out))
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    ours = Ours(Config.fromfile(options.config))
    boxes = [ours.draw() for _ in range(options.images)]
    pipeline = build_pipeline([crop.scale[0] for crop in ours.crops], options.images)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_photos(Path(folder), options.images)
        ways = dict(
            ours=lambda: [ours(path, own) for path, own in zip(paths, boxes, strict=True)],
            dali=lambda: crop_with_dali(pipeline, paths, boxes),
        )
        views = [np.stack(view) for view in zip(*ways['ours'](), strict=True)]
        errors = [np.abs(a.astype(int) - b) for a, b in zip(views, ways['dali'](), strict=True)]
        milliseconds = {name: [] for name in ways}
        for timed in take_turns(ways, options.turns, warm_up=1):
            milliseconds[timed.name].append(1000 * timed.cpu_seconds / options.images)
    report = dict(
        command='python tools/benchmarks/dali_crops.py',
        environment=f'{processor_name()}, one thread, DALI {dali.__version__}, torch {torch.__version__}.',
        images=options.images,
        turns=options.turns,
        milliseconds=milliseconds,
        mean_difference=float(np.mean([error.mean() for error in errors])),
        largest_difference=int(max(error.max() for error in errors)),
    )
    write_report(report, Path(options.out), format_page(report))


def format_page(report: dict) -> str:
    times = report['milliseconds']
    ratios = [theirs / own for theirs, own in zip(times['dali'], times['ours'], strict=True)]
    low, ratio, high = np.percentile(ratios, [25, 50, 75])
    rows = [
        ['`LoadImage` and `FastRandomResizedCrop`', f'{statistics.median(times["ours"]):.1f}', '1'],
        ['DALI, CPU backend', f'{statistics.median(times["dali"]):.1f}', f'{ratio:.1f} ({low:.1f}-{high:.1f})'],
    ]
    table = markdown_table(['way', 'CPU ms an image', 'times as long'], rows, ['left', 'right', 'right'])
    return (
        f'# Crops with NVIDIA DALI\n\n{report["environment"]} {report["images"]} JPEG files of {SIZE[0]} x {SIZE[1]} '
        f'pixels, {report["turns"]} turns in one process; the same boxes for both.\n\n{table}\n\n'
        'Decoding, and two crops of 224 and ten of 96 pixels, antialiased bicubic. Medians; quartiles in brackets. The '
        f'views differ by {report["mean_difference"]:.2f} gray levels on average, at most '
        f'{report["largest_difference"]}.\n\nMade by `{report["command"]}`.\n'
    )


if __name__ == '__main__':
    main()
