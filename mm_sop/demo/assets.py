"""The compact asset folder: a few megabytes from which any machine can generate every composite set.

Layout::

    assets.json                 kind, provenance and license of each file
    cutouts/<class>/<name>.webp photo cut-outs with alpha
    distractors/<name>.webp     cut-outs of other objects, never labeled
    photos/<name>.jpg           backgrounds
"""

import hashlib
import itertools
import json
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mm_sop.demo.images import (
    UnusableImageError,
    crop_to_object,
    has_real_alpha,
    is_photo_like,
    near_duplicates,
    read_image,
    signature,
)
from mm_sop.demo.packages import Source
from mm_sop.utils.failures import UserError
from mm_sop.utils.files import hash_file, make_folder_atomically

ASSETS_VERSION = 1
CUTOUT_SIDE = 192
PHOTO_SIDE = 640
MIN_PHOTO_SIDE = 256
MIN_CUTOUTS_PER_CLASS = 2
MIN_PHOTOS = 2
MIN_PHOTO_CONTRAST = 8.0
KINDS = ('cutouts', 'distractors', 'photos')
IMAGE_SUFFIXES = {'.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff', '.gif'}


class AssetError(UserError, ValueError):
    """Unusable asset folder, or unusable sources for one."""


@dataclass(frozen=True)
class Cutout:
    """Photo cut-out."""

    name: str  # Unique name, ``class/stem``
    label: str  # Class name, or ``'distractor'``
    image: np.ndarray = field(repr=False)  # (H, W, 4) uint8, RGB premultiplied by alpha
    mirror: bool = True  # Whether it may be mirrored left to right


@dataclass(frozen=True)
class Photo:
    """Background photo: a unique name and an (H, W, 3) uint8 RGB image."""

    name: str
    image: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Split:
    """Cut-outs, distractors and photos of one side of the split."""

    cutouts: list[Cutout]
    distractors: list[Cutout]
    photos: list[Photo]

    @cached_property
    def by_class(self) -> dict[str, list[Cutout]]:
        groups: dict[str, list[Cutout]] = {}
        for cutout in self.cutouts:
            groups.setdefault(cutout.label, []).append(cutout)
        return dict(sorted(groups.items()))

    def names(self) -> dict[str, list[str]]:
        return {kind: [item.name for item in getattr(self, kind)] for kind in KINDS}


@dataclass(frozen=True)
class Assets:
    """All cut-outs and photos of an asset folder."""

    cutouts: list[Cutout]  # Labeled cut-outs, sorted by name; the position is the identity index
    distractors: list[Cutout]
    photos: list[Photo]
    licenses: dict[str, int]  # Number of source images per package and license
    fingerprint: str  # Hash of the asset list

    @property
    def classes(self) -> list[str]:
        return sorted({cutout.label for cutout in self.cutouts})

    @classmethod
    def load(cls, folder: str | Path) -> 'Assets':
        """Read an asset folder.

        Raises:
            AssetError: If ``assets.json`` or a file that it names is missing or unreadable.
        """
        asset_list = read_asset_list(folder)
        items: dict[str, Any] = {
            kind: [_read_asset(Path(folder), entry) for entry in asset_list[kind]] for kind in KINDS
        }
        sources = Counter(f'{entry["package"]}: {entry["license"]}' for kind in KINDS for entry in asset_list[kind])
        return cls(**items, licenses=dict(sorted(sources.items())), fingerprint=fingerprint(asset_list))

    def split(self, seed: int, train_fraction: float) -> dict[str, Split]:
        """Split cut-outs (per class), distractors and photos into ``train`` and ``test``, each with at least one."""
        rng = np.random.default_rng([seed, 0x5EED])
        groups = [[c for c in self.cutouts if c.label == label] for label in self.classes]
        halves = [_split_list(group, train_fraction, rng) for group in groups]
        cutouts = [[c for half in halves for c in half[side]] for side in (0, 1)]
        distractors, photos = (_split_list(items, train_fraction, rng) for items in (self.distractors, self.photos))
        return {name: Split(cutouts[i], distractors[i], photos[i]) for i, name in enumerate(('train', 'test'))}


def _split_list(items: list, train_fraction: float, rng: np.random.Generator) -> tuple[list, list]:
    count = max(min(max(round(train_fraction * len(items)), 1), len(items) - 1), 0)
    train = set(rng.permutation(len(items))[:count].tolist())
    return [x for i, x in enumerate(items) if i in train], [x for i, x in enumerate(items) if i not in train]


def read_asset_list(folder: str | Path) -> dict:
    """Read and check ``assets.json``."""
    path = Path(folder, 'assets.json')
    try:
        asset_list = json.loads(path.read_text())
    except FileNotFoundError:
        raise AssetError(f'{folder} is not an asset folder: it has no assets.json') from None
    except json.JSONDecodeError as error:
        raise AssetError(f'{path} is not valid JSON ({error}); delete the folder and build it again') from None
    if asset_list.get('version') != ASSETS_VERSION:
        found = asset_list.get('version')
        raise AssetError(f'{path} has version {found}, expected {ASSETS_VERSION}: delete the folder and build it again')
    return asset_list


def fingerprint(asset_list: dict) -> str:
    return hashlib.sha256(json.dumps(asset_list, sort_keys=True).encode()).hexdigest()[:16]


def _read_asset(folder: Path, entry: dict) -> Cutout | Photo:
    is_photo = 'class' not in entry
    try:
        image = read_image(folder / entry['file'], 'RGB' if is_photo else 'RGBA', max(CUTOUT_SIDE, PHOTO_SIDE))
    except UnusableImageError as error:
        raise AssetError(f'The asset folder is damaged, build it again: {error}') from error
    if is_photo:
        return Photo(entry['name'], np.asarray(image))
    return Cutout(entry['name'], entry['class'], premultiply(np.asarray(image)), entry['mirror'])


def premultiply(image: np.ndarray) -> np.ndarray:
    """Multiply the colors of an (H, W, 4) uint8 image by its alpha to allow scaling without fringes."""
    alpha = image[..., 3:].astype(np.uint16)
    return np.concatenate([(image[..., :3] * alpha + 127) // 255, alpha], axis=-1).astype(np.uint8)


def find_own_sources(cutouts: str | Path, photos: str | Path, license: str = 'unknown') -> list[Source]:
    """List the images of a user: ``cutouts/<class>/**`` with alpha, ``photos/**`` of any kind.

    A class folder named ``distractor`` holds unlabeled cut-outs.

    Raises:
        AssetError: If a folder is missing or has no class folders.
    """
    cutouts, photos = Path(cutouts), Path(photos)
    for folder in (cutouts, photos):
        if not folder.is_dir():
            raise AssetError(f'{folder} is not a folder')
    classes = sorted(path for path in cutouts.iterdir() if path.is_dir())
    if not classes:
        raise AssetError(f'{cutouts} has no class folders; expected {cutouts}/<class>/<image>.png')
    return [
        Source(path, label, path.stem, 'own', f'{root.name}/{path.relative_to(root).as_posix()}', license, 'unknown')
        for folder, label, root in [*((folder, folder.name, cutouts) for folder in classes), (photos, None, photos)]
        for path in sorted(folder.rglob('*'))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]


def build_assets(sources: list[Source], out: str | Path) -> dict:
    """Select the usable source images and write the compact asset folder ``out``; return the content of its list.

    Rejected, with the reason in ``assets.json``: unreadable files, drawings, images without a real alpha mask, too
    small or monochrome photos, and near-duplicates of another image.

    Raises:
        AssetError: If ``out`` exists, or fewer than two classes of two cut-outs or two photos remain.
    """
    out = Path(out)
    if out.exists():
        raise AssetError(f'{out} exists already; delete it to build it again')
    chosen, rejected = choose_sources(sources)
    counts = Counter(source.label for source, _ in chosen if source.label != 'distractor')
    photos = counts.pop(None, 0)
    classes = {label for label, count in counts.items() if count >= MIN_CUTOUTS_PER_CLASS}
    if len(classes) < 2 or photos < MIN_PHOTOS:
        raise AssetError(
            f'Not enough usable images: {dict(counts)} cut-outs per class and {photos} photos ({len(rejected)} '
            f'rejected). At least 2 classes of {MIN_CUTOUTS_PER_CLASS} cut-outs and {MIN_PHOTOS} photos are needed; '
            'fetch more packages or pass images of your own.'
        )
    assets: dict = dict(version=ASSETS_VERSION, **{kind: [] for kind in KINDS})
    taken: set[str] = set()
    with make_folder_atomically(out) as folder:
        for source, image in chosen:
            if source.label in counts.keys() - classes:
                rejected[source.source] = 'the only cut-out of its class'
                continue
            kind = {None: 'photos', 'distractor': 'distractors'}.get(source.label, 'cutouts')
            assets[kind].append(_write_asset(folder, kind, _unique_name(source, taken), source, image))
        for kind in KINDS:
            assets[kind].sort(key=lambda entry: entry['name'])
        assets['rejected'] = dict(sorted(rejected.items()))
        Path(folder, 'assets.json').write_text(json.dumps(assets, indent=1) + '\n')
    return assets


def choose_sources(sources: list[Source]) -> tuple[list[tuple[Source, Image.Image]], dict[str, str]]:
    """Return the usable sources with their images, and the reason for every rejected path."""
    read = [(source, _read_source(source)) for source in sources]
    rejected = {source.source: result for source, result in read if isinstance(result, str)}
    usable = [(source, result) for source, result in read if not isinstance(result, str)]
    chosen = []
    for is_photo in (False, True):
        group = [pair for pair in usable if (pair[0].label is None) == is_photo]
        # Of repeated images the first is retained: labeled cut-outs before distractors, larger versions first.
        group.sort(key=lambda pair: (pair[0].label == 'distractor', -max(pair[1].info['original_size'])))
        repeated = dict(near_duplicates([signature(image) for _, image in group]))
        rejected.update({group[i][0].source: f'repeats {group[k][0].source}' for i, k in repeated.items()})
        chosen += [pair for index, pair in enumerate(group) if index not in repeated]
    return sorted(chosen, key=lambda pair: pair[0].source), rejected


def _read_source(source: Source) -> Image.Image | str:
    """Decode a source image, and crop and shrink cut-outs. An unusable image gives the reason."""
    is_photo = source.label is None
    try:
        image = read_image(source.path, 'RGB' if is_photo else 'RGBA', PHOTO_SIDE if is_photo else 4 * PHOTO_SIDE)
    except UnusableImageError as error:
        warnings.warn(f'Rejected: {error}', stacklevel=2)
        return 'cannot be decoded'
    if is_photo:
        if min(image.size) < MIN_PHOTO_SIDE:
            return f'smaller than {MIN_PHOTO_SIDE} pixels'
        return image if np.asarray(image.convert('L')).std() >= MIN_PHOTO_CONTRAST else 'monochrome'
    cropped = crop_to_object(image)
    if cropped is None or not has_real_alpha(cropped):
        return 'no real alpha mask, or too small'
    if not is_photo_like(cropped):
        return 'a drawing'
    cropped.thumbnail((CUTOUT_SIDE, CUTOUT_SIDE), Image.Resampling.LANCZOS)
    return cropped


def _unique_name(source: Source, taken: set[str]) -> str:
    stem = ''.join(c if c.isalnum() else '-' for c in source.name.lower()).strip('-')
    base = f'{source.label or "photo"}/{stem}'
    candidates = itertools.chain([base], (f'{base}-{number}' for number in itertools.count(2)))
    name = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(name)
    return name


def _write_asset(folder: Path, kind: str, name: str, source: Source, image: Image.Image) -> dict:
    options: dict[str, Any] = dict(format='WEBP', quality=90, method=4)
    if kind == 'photos':
        file, options = f'photos/{Path(name).name}.jpg', dict(format='JPEG', quality=90)
    else:
        file = f'cutouts/{name}.webp' if kind == 'cutouts' else f'distractors/{Path(name).name}.webp'
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(image)).save(path, **options)
    entry: dict[str, Any] = dict(name=name, file=file)
    entry.update({key: getattr(source, key) for key in ('source', 'package', 'license', 'copyright')})
    entry['original_size'] = list(image.info['original_size'])
    if kind != 'photos':
        entry.update({'class': source.label, 'mirror': source.mirror})
    return dict(entry, sha256=hash_file(path))
