"""Base of all composite sets: settings, random streams and writers."""

import json
import zlib
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np

from mm_sop.demo.assets import Assets, Cutout, Split
from mm_sop.demo.compose import OBJECT_CENTERED, SCENE, Style
from mm_sop.utils.failures import UserError

IMAGE_FORMATS = ('png', 'jpg')
JPEG_QUALITY = 95
MAX_COPIES = 8_000


class SettingsError(UserError, ValueError):
    """Setting of the generator that is out of range."""


@dataclass(frozen=True)
class CompositeSettings:
    """Sizes and counts of all sets. Sizes that are pairs are (width, height) in pixels.

    Args:
        seed (int): Seed of the split and of every image.
        train_fraction (float): Fraction of cut-outs per class, distractors and photos in the train split.
        image_format (str): ``'png'`` or ``'jpg'`` (quality 95) for ``pretrain``, ``classes`` and ``backgrounds``.
        size (int): Side of the square images of ``pretrain``, ``classes`` and ``backgrounds``.
        pretrain (int): Unlabeled images: train cut-outs on train photos.
        bank (int): Labeled images: train cut-outs on train photos.
        seen (int): Labeled images: train cut-outs on test photos.
        test (int): Labeled images: test cut-outs on test photos.
        scene_size (tuple[int, int]): Size of ``scenes``, ``segmentation`` and ``retrieval``.
        scenes_train (int): Training scenes.
        scenes_val (int): Validation scenes: test cut-outs on test photos.
        retrieval_positives (int): Database images per query object: half easy, three eighths hard, the rest junk.
        retrieval_others (int): Database images without a query object.
        copies (int): Original images of copy detection.
        copies_size (tuple[int, int]): Size of an original.
        video_size (tuple[int, int]): Size of a frame.
        video_train (int): Training sequences.
        video_val (int): Validation sequences.
        video_frames (int): Frames per sequence.
        backgrounds (int): Objects of the background-swap set.
        object_style (Style): Style of ``pretrain``, ``classes`` and ``backgrounds``.
        scene_style (Style): Style of the other sets.
    """

    seed: int = 0
    train_fraction: float = 0.7
    image_format: str = 'png'
    size: int = 64
    pretrain: int = 20_000
    bank: int = 2_000
    seen: int = 1_000
    test: int = 1_000
    scene_size: tuple[int, int] = (160, 128)
    scenes_train: int = 2_000
    scenes_val: int = 400
    retrieval_positives: int = 16
    retrieval_others: int = 1_000
    copies: int = 157
    copies_size: tuple[int, int] = (160, 128)
    video_size: tuple[int, int] = (192, 112)
    video_train: int = 10
    video_val: int = 10
    video_frames: int = 24
    backgrounds: int = 500
    object_style: Style = OBJECT_CENTERED
    scene_style: Style = SCENE

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f'seed must lie in [0, 2**32), got {self.seed}')
        if not 0 < self.train_fraction < 1:
            raise SettingsError(f'train_fraction must lie between 0 and 1, got {self.train_fraction}')
        if self.image_format not in IMAGE_FORMATS:
            raise SettingsError(f'image_format must be one of {IMAGE_FORMATS}, got {self.image_format!r}')
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith('size') and not all(16 <= side <= 1024 for side in np.ravel(value)):
                raise SettingsError(f'{field.name} must lie in [16, 1024] pixels, got {value}')
            if field.type is int and field.name != 'seed' and value < 1:
                raise SettingsError(f'{field.name} must be at least 1, got {value}')
        if self.copies > MAX_COPIES:
            raise SettingsError(
                f'copies must be at most {MAX_COPIES} (four digits of the file names), got {self.copies}'
            )


class CompositeSet(ABC):
    """One dataset of ``len(self)`` items, which any process may render in any order; file lists follow at the end.

    Args:
        settings (CompositeSettings): Sizes and counts.
        assets (Assets): Cut-outs and photos.
    """

    name: str
    setting_names: tuple[str, ...]
    stream: str | None = None

    def __init__(self, settings: CompositeSettings, assets: Assets) -> None:
        self.settings = settings
        self.assets = assets
        self.splits = assets.split(settings.seed, settings.train_fraction)
        self.identities = {cutout.name: index for index, cutout in enumerate(assets.cutouts)}

    @abstractmethod
    def __len__(self) -> int:
        """Number of items to render."""

    @abstractmethod
    def render(self, index: int, folder: Path) -> dict:
        """Write the files of one item below ``folder`` and return their record."""

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        """Write file lists and annotations from the records of all items, in order, and return counts."""
        return {'images': len(records)}

    @classmethod
    def used_settings(cls, settings: CompositeSettings) -> dict:
        """Settings that the files of this set depend on, as read back from JSON."""
        values = asdict(settings)
        names = ('seed', 'train_fraction', *cls.setting_names)
        return json.loads(json.dumps({name: values[name] for name in names}))

    def rng(self, *key: int) -> np.random.Generator:
        """Create a generator that depends only on the seed, the set and ``key``."""
        stream = zlib.crc32((self.stream or self.name).encode())
        return np.random.default_rng(np.random.SeedSequence([self.settings.seed, stream, *key]))


def balanced_cutout(split: Split, index: int) -> Cutout:
    """Return the cut-out of item ``index``, cycling over the classes and, within a class, over its cut-outs."""
    by_class = split.by_class
    classes = sorted(by_class)
    members = by_class[classes[index % len(classes)]]
    return members[index // len(classes) % len(members)]


def balanced_choice(split: Split, count: int | np.integer, rng: np.random.Generator) -> list[Cutout]:
    """Draw random cut-outs: first the class, then one of its cut-outs."""
    by_class = split.by_class
    classes = sorted(by_class)
    chosen = [by_class[classes[i]] for i in rng.integers(len(classes), size=count)]
    return [members[rng.integers(len(members))] for members in chosen]


def write_image(path: Path, image: np.ndarray, quality: int = JPEG_QUALITY) -> None:
    """Write an (H, W, 3) uint8 RGB image as JPEG or PNG by its suffix.

    PNG compression level 1 halves the time and costs a few percent in size.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == '.jpg' else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.ascontiguousarray(image[..., ::-1]), options)[1].tobytes())


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + '\n')
