"""Base of all composite sets: settings, random streams and writers."""

import json
import zlib
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

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


def setting(default: Any, description: str) -> Any:
    return field(default=default, metadata=dict(description=description))


@dataclass(frozen=True)
class CompositeSettings:
    """Sizes and counts of all sets. Sizes that are pairs are (width, height) in pixels."""

    seed: int = setting(0, 'Seed of the split and of every image.')
    train_fraction: float = setting(0.7, 'Fraction of cut-outs per class, distractors and photos in the train split.')
    image_format: str = setting(
        'png', "``'png'`` or ``'jpg'`` (quality 95) for ``pretrain``, ``classes`` and ``backgrounds``."
    )
    size: int = setting(64, 'Side of the square images of ``pretrain``, ``classes`` and ``backgrounds``.')
    pretrain: int = setting(20_000, 'Unlabeled images: train cut-outs on train photos.')
    bank: int = setting(2_000, 'Labeled images: train cut-outs on train photos.')
    seen: int = setting(1_000, 'Labeled images: train cut-outs on test photos.')
    test: int = setting(1_000, 'Labeled images: test cut-outs on test photos.')
    scene_size: tuple[int, int] = setting((160, 128), 'Size of ``scenes``, ``segmentation`` and ``retrieval``.')
    scenes_train: int = setting(2_000, 'Training scenes.')
    scenes_val: int = setting(400, 'Validation scenes: test cut-outs on test photos.')
    retrieval_positives: int = setting(
        16, 'Database images per query object: half easy, three eighths hard, the rest junk.'
    )
    retrieval_others: int = setting(1_000, 'Database images without a query object.')
    copies: int = setting(157, 'Original images of copy detection.')
    copies_size: tuple[int, int] = setting((160, 128), 'Size of an original.')
    video_size: tuple[int, int] = setting((192, 112), 'Size of a frame.')
    video_train: int = setting(10, 'Training sequences.')
    video_val: int = setting(10, 'Validation sequences.')
    video_frames: int = setting(24, 'Frames per sequence.')
    backgrounds: int = setting(500, 'Objects of the background-swap set.')
    object_style: Style = setting(OBJECT_CENTERED, 'Style of ``pretrain``, ``classes`` and ``backgrounds``.')  # noqa: RUF009
    scene_style: Style = setting(SCENE, 'Style of the other sets.')  # noqa: RUF009

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f'seed must lie in [0, 2**32), got {self.seed}')
        if not 0 < self.train_fraction < 1:
            raise SettingsError(f'train_fraction must lie between 0 and 1, got {self.train_fraction}')
        if self.image_format not in IMAGE_FORMATS:
            raise SettingsError(f'image_format must be one of {IMAGE_FORMATS}, got {self.image_format!r}')
        for name, kind in ((each.name, each.type) for each in fields(self)):
            value = getattr(self, name)
            if name.endswith('size') and not all(16 <= side <= 1024 for side in np.ravel(value)):
                raise SettingsError(f'{name} must lie in [16, 1024] pixels, got {value}')
            if kind is int and name != 'seed' and value < 1:
                raise SettingsError(f'{name} must be at least 1, got {value}')
        if self.copies > MAX_COPIES:
            raise SettingsError(
                f'copies must be at most {MAX_COPIES} (four digits of the file names), got {self.copies}'
            )


class CompositeSet(ABC):
    """One dataset of ``len(self)`` items, which any process may render in any order; file lists follow at the end.

    Args:
        settings (CompositeSettings): Sizes and counts.
        assets (Assets): Cut-outs and photos.

    Attributes:
        name (str): Name of the set and of its folder.
        parts (dict[str, str]): Setting with the number of items by part of the set; one part follows another.
        setting_names (tuple[str, ...]): Settings on which the files depend.
        stream (str | None): Name in the seeds of the random streams. Defaults to None, that of the set.
    """

    name: str
    parts: dict[str, str]
    setting_names: tuple[str, ...]
    stream: str | None = None

    def __init__(self, settings: CompositeSettings, assets: Assets) -> None:
        self.settings = settings
        self.assets = assets
        self.splits = assets.split(settings.seed, settings.train_fraction)
        self.identities = {cutout.name: index for index, cutout in enumerate(assets.cutouts)}
        self.counts = {part: getattr(settings, setting) for part, setting in self.parts.items()}

    def __len__(self) -> int:
        return sum(self.counts.values())

    def locate(self, index: int) -> tuple[str, int]:
        """Return the part of an item, and its index there."""
        for part, count in self.counts.items():
            if index < count:
                return part, index
            index -= count
        raise IndexError(index)

    @abstractmethod
    def render(self, index: int, folder: Path) -> dict:
        """Write the files of one item below ``folder`` and return their record."""

    def finish(self, records: list[dict], folder: Path) -> dict[str, int]:
        """Write file lists and annotations from the records of all items, in order, and return counts."""
        return {'images': len(records)}

    def by_part(self, records: list[dict]) -> dict[str, list[dict]]:
        """Split the records of all items into those of each part."""
        remaining = iter(records)
        return {part: list(islice(remaining, count)) for part, count in self.counts.items()}

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
    groups = list(split.by_class.values())
    members = groups[index % len(groups)]
    return members[index // len(groups) % len(members)]


def balanced_choice(split: Split, least: int, most: int, rng: np.random.Generator) -> list[Cutout]:
    """Draw ``least`` to ``most`` random cut-outs: first the classes, then one of the cut-outs of each."""
    groups = list(split.by_class.values())
    chosen = rng.integers(len(groups), size=rng.integers(least, most + 1))
    return [groups[i][rng.integers(len(groups[i]))] for i in chosen]


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
