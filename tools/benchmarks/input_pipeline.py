"""Times the loading of images of `configs/sop/vitb.py` (2 x 224 and 10 x 96 pixels) against the classic recipe.

The classic recipe is that of iBOT's and SOP's code: Pillow and torchvision, every view cropped and augmented on the
host. All ways run in this process in turns, on one core.
"""

import io
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from harness import ROOT, markdown_table, parse_options, processor_name, take_turns, write_report
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS
from PIL import Image, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images
from torchvision import transforms

import mm_sop  # noqa: F401

SIZE = 500, 375
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GOAL = 8


def make_photos(folder: Path, count: int) -> list[Path]:
    """Write parts of two photos as JPEG files of the usual size of ImageNet."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    paths = [folder / f'{index}.jpg' for index in range(count)]
    for index, path in enumerate(paths):
        photo = photos[index % len(photos)]
        scale = rng.uniform(0.8, 1)
        width, height = round(photo.width * scale), round(photo.width * scale * SIZE[1] / SIZE[0])
        height = min(height, photo.height)
        left, top = rng.integers(photo.width - width + 1), rng.integers(photo.height - height + 1)
        part = photo.crop((left, top, left + width, top + height)).resize(SIZE, Image.Resampling.LANCZOS)
        part.save(path, quality=90)
    return paths


class Classic:
    """Two global and ten local views with Pillow and torchvision."""

    def __init__(self) -> None:
        jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)
        self.colors = [transforms.RandomHorizontalFlip(), jitter, transforms.RandomGrayscale(0.2)]
        self.last = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self.views = [
            self.view(224, (0.32, 1.0), [self.blur(1.0)]),
            self.view(224, (0.32, 1.0), [self.blur(0.1), self.solarize]),
            *[self.view(96, (0.05, 0.32), [self.blur(0.5)])] * 10,
        ]

    def view(self, size: int, scale: tuple[float, float], further: list[Callable]) -> transforms.Compose:
        crop = transforms.RandomResizedCrop(size, scale, interpolation=transforms.InterpolationMode.BICUBIC)
        return transforms.Compose([crop, *self.colors, *further, *self.last])

    @staticmethod
    def blur(probability: float) -> Callable:
        def apply(image: Image.Image) -> Image.Image:
            if random.random() > probability:
                return image
            return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

        return apply

    @staticmethod
    def solarize(image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < 0.2 else image

    def __call__(self, path: Path) -> list[torch.Tensor]:
        image = Image.open(io.BytesIO(path.read_bytes())).convert('RGB')
        return [view(image) for view in self.views]


class Ours:
    """The dataset of the config on the host, up to and including some of its steps."""

    def __init__(
        self, config: Config, folder: Path, augment_on: str = 'host', views: str = 'all', last: int = 4
    ) -> None:
        dataset = config.train_dataloader.dataset.dataset.to_dict()
        pipeline = dataset['pipeline'][:last]
        if last > 1:
            pipeline[1]['augment_on'] = augment_on
            if views == 'crops':
                pipeline[1]['transforms'] = [each[:1] for each in pipeline[1]['transforms']]
        self.dataset = DATASETS.build(dict(dataset, data_root=str(folder), pipeline=pipeline))

    def __call__(self, index: int) -> dict:
        return self.dataset[index]


def main() -> None:
    options = parse_options(
        __doc__,
        images=24,
        turns=15,
        config=str(ROOT / 'configs/sop/vitb.py'),
        out=str(ROOT / 'docs/benchmarks/input_pipeline.json'),
    )
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    config = Config.fromfile(options.config)
    with tempfile.TemporaryDirectory() as name:
        report = measure(config, make_photos(Path(name), options.images), options.turns)
    report['command'] = 'python tools/benchmarks/input_pipeline.py'
    report['environment'] = f'{processor_name()}, one thread, torch {torch.__version__}, OpenCV {cv2.__version__}.'
    write_report(report, Path(options.out), format_page(report))


def measure(config: Config, paths: list[Path], turns: int) -> dict:
    folder, indices = paths[0].parent, range(len(paths))
    classic = Classic()
    ways = dict(
        classic=lambda: [classic(path) for path in paths],
        host=over(Ours(config, folder), indices),
        device=over(Ours(config, folder, 'device'), indices),
        decoding=over(Ours(config, folder, last=1), indices),
        crops=over(Ours(config, folder, views='crops', last=2), indices),
        drawing=over(Ours(config, folder, 'device', last=2), indices),
        views=over(Ours(config, folder, last=2), indices),
    )
    device_batch = default_collate([Ours(config, folder, 'device')(index) for index in indices])
    preprocessor = MODELS.build(config.data_preprocessor.to_dict())
    ways['device_on_cpu'] = lambda: preprocessor(dict(device_batch))
    milliseconds = {name: [] for name in ways}
    for timed in take_turns(ways, turns, warm_up=1):
        milliseconds[timed.name].append(1000 * timed.cpu_seconds / len(paths))
    return dict(images=len(paths), turns=turns, size=SIZE, milliseconds=milliseconds)


def over(way: Callable, indices: range) -> Callable:
    return lambda: [way(index) for index in indices]


def format_page(report: dict) -> str:
    times = report['milliseconds']
    middle = {name: statistics.median(values) for name, values in times.items()}

    def row(title: str, name: str) -> list[str]:
        ratios = [classic / own for classic, own in zip(times['classic'], times[name], strict=True)]
        low, ratio, high = np.percentile(ratios, [25, 50, 75])
        return [title, f'{middle[name]:.1f}', f'{ratio:.1f} ({low:.1f}-{high:.1f})']

    ways = [
        row('classic recipe', 'classic'),
        row("`augment_on='host'`", 'host'),
        row("`augment_on='device'`: what remains on the host", 'device'),
    ]
    stages = [
        ['reading and decoding', middle['decoding']],
        ['twelve crops, resized', middle['crops'] - middle['decoding']],
        ['drawing the augmentations', middle['drawing'] - middle['crops']],
        ['masks and packing', middle['device'] - middle['drawing']],
        ['flips, colors, gray, blur, solarization on the host', middle['views'] - middle['drawing']],
    ]
    return (
        f'# Input pipeline of `configs/sop/vitb.py`\n\n{report["environment"]} {report["images"]} JPEG files of '
        f'{SIZE[0]} x {SIZE[1]} pixels (parts of the two photos in scikit-learn, quality 90), {report["turns"]} '
        'turns.\n\n'
        f'{markdown_table(["way", "CPU ms an image", "times as fast"], ways, ["left", "right", "right"])}\n\n'
        'Medians over turns; ratios to the classic recipe in the same turn (quartiles in brackets). An image gives two '
        'views of 224 and ten of 96 pixels, with their masks in all ways but the classic one. '
        f'The goal for the host beside a GPU is {GOAL} times.\n\n'
        f'{markdown_table(["stage", "CPU ms an image"], [[a, f"{b:.1f}"] for a, b in stages], ["left", "right"])}\n\n'
        f'The augmentation of the batch and its normalization take {middle["device_on_cpu"]:.1f} ms an image on one '
        'core of this CPU; they belong on a GPU.\n\n'
        f'Made by `{report["command"]}`.\n'
    )


if __name__ == '__main__':
    main()
