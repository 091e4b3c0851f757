"""What every composite set has in common: settings, random streams and listings."""

import json
import zlib
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np

from .assets import Assets, Cutout, Split
from .compose import OBJECT_CENTRED, SCENE, Style

PICTURE_FORMATS = ('png', 'jpg')
JPEG_QUALITY = 95
MAX_COPIES = 8_000


class SettingsError(ValueError):
    """A setting of the generator that is out of range."""


@dataclass(frozen=True)
class CompositeSettings:
    """Sizes and counts of all sets. Sizes are (width, height) in pixels where they are pairs.

    Args:
        seed (int): Fixes the split and every picture.
        train_fraction (float): Share of cut-outs per class, distractors and photos on the train side.
        picture_format (str): ``'png'`` or ``'jpg'`` (quality 95) for ``pretrain``, ``classes`` and ``backgrounds``.
        size (int): Side of the square pictures of ``pretrain``, ``classes`` and ``backgrounds``.
        pretrain (int): Unlabelled pictures: train cut-outs on train photos.
        bank (int): Labelled pictures: train cut-outs on train photos.
        seen (int): Labelled pictures: train cut-outs on test photos.
        test (int): Labelled pictures: test cut-outs on test photos.
        scene_size (tuple[int, int]): Size of ``scenes``, ``segmentation`` and ``retrieval``.
        scenes_train (int): Training scenes.
        scenes_val (int): Validation scenes: test cut-outs on test photos.
        retrieval_positives (int): Database pictures of each query object: half easy, three eighths hard, the rest junk.
        retrieval_others (int): Database pictures that show no query object.
        copies (int): Originals of copy detection.
        copies_size (tuple[int, int]): Size of an original.
        video_size (tuple[int, int]): Size of a frame.
        video_train (int): Training sequences.
        video_val (int): Validation sequences.
        video_frames (int): Frames of a sequence.
        backgrounds (int): Objects of the background-swap set.
        object_style (Style): Style of ``pretrain``, ``classes`` and ``backgrounds``.
        scene_style (Style): Style of the other sets.
    """

    seed: int = 0
    train_fraction: float = 0.7
    picture_format: str = 'png'
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
    object_style: Style = OBJECT_CENTRED
    scene_style: Style = SCENE

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f'seed must lie in [0, 2**32), got {self.seed}')
        if not 0 < self.train_fraction < 1:
            raise SettingsError(f'train_fraction must lie between 0 and 1, got {self.train_fraction}')
        if self.picture_format not in PICTURE_FORMATS:
            raise SettingsError(f'picture_format must be one of {PICTURE_FORMATS}, got {self.picture_format!r}')
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
    """One data set: ``len(self)`` items, rendered one by one in any order by any process, then listed.

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
        """Write the files of one item below ``folder`` and describe them."""

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        """Write listings and annotations from the records of all items, in order; return what was counted."""
        return {'pictures': len(records)}

    @classmethod
    def used_settings(cls, settings: CompositeSettings) -> dict:
        """The settings on which the files of this set depend, as read back from JSON."""
        names = ('seed', 'train_fraction', *cls.setting_names)
        settings = asdict(settings)
        return json.loads(json.dumps({name: settings[name] for name in names}))

    def rng(self, *key: int) -> np.random.Generator:
        """A generator that depends on the seed, the set and ``key`` only."""
        stream = zlib.crc32((self.stream or self.name).encode())
        return np.random.default_rng(np.random.SeedSequence([self.settings.seed, stream, *key]))


def balanced_cutout(split: Split, index: int) -> Cutout:
    """The cut-out of item ``index`` when classes take turns, and in each class its cut-outs."""
    by_class = split.by_class
    classes = sorted(by_class)
    members = by_class[classes[index % len(classes)]]
    return members[index // len(classes) % len(members)]


def balanced_choice(split: Split, count: int, rng: np.random.Generator) -> list[Cutout]:
    """Random cut-outs, the class first, then one of its cut-outs."""
    by_class = split.by_class
    classes = sorted(by_class)
    chosen = [by_class[classes[i]] for i in rng.integers(len(classes), size=count)]
    return [members[rng.integers(len(members))] for members in chosen]


def write_picture(path: Path, image: np.ndarray, quality: int = JPEG_QUALITY) -> None:
    """Write an (H, W, 3) uint8 RGB picture as JPEG or PNG by its suffix.

    PNG is written at compression level 1, which halves the time and costs a few per cent in size.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == '.jpg' else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.ascontiguousarray(image[..., ::-1]), options)[1].tobytes())


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + '\n')
