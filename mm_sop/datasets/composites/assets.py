"""The compact asset folder: a few megabytes from which every composite set can be generated on any machine.

Layout::

    assets.json                 what each file is, where it comes from, its licence
    cutouts/<class>/<name>.webp photo cut-outs with alpha
    distractors/<name>.webp     cut-outs of other things, never labelled
    photos/<name>.jpg           backgrounds
"""

import hashlib
import json
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from mm_sop.datasets.files import open_regular
from mm_sop.engine.atomic import make_folder_atomically

from .images import (
    UnusableImageError,
    crop_to_object,
    has_real_alpha,
    is_photo_like,
    near_duplicates,
    read_image,
    signature,
)
from .packages import Source

ASSETS_VERSION = 1
CUTOUT_SIDE = 192
PHOTO_SIDE = 640
MIN_PHOTO_SIDE = 256
MIN_CUTOUTS_PER_CLASS = 2
MIN_PHOTOS = 2
MIN_PHOTO_CONTRAST = 8.0
PICTURE_SUFFIXES = {'.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff', '.gif'}


class AssetError(ValueError):
    """An asset folder, or the sources for one, that cannot be used."""


@dataclass(frozen=True)
class Cutout:
    """A photo cut-out.

    Args:
        name (str): Unique name, ``class/stem``.
        label (str): Class name, or ``'distractor'``.
        image (np.ndarray): (H, W, 4) uint8, RGB premultiplied by alpha.
        mirror (bool): Whether it may be mirrored left to right.
    """

    name: str
    label: str
    image: np.ndarray = field(repr=False)
    mirror: bool = True


@dataclass(frozen=True)
class Photo:
    """A background photo: a unique name and an (H, W, 3) uint8 RGB picture."""

    name: str
    image: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Split:
    """The cut-outs, distractors and photos that one side of the split may use."""

    cutouts: list[Cutout]
    distractors: list[Cutout]
    photos: list[Photo]

    @cached_property
    def by_class(self) -> dict[str, list[Cutout]]:
        groups: dict[str, list[Cutout]] = {}
        for cutout in self.cutouts:
            groups.setdefault(cutout.label, []).append(cutout)
        return groups

    def names(self) -> dict[str, list[str]]:
        return {kind: [item.name for item in getattr(self, kind)] for kind in ('cutouts', 'distractors', 'photos')}


@dataclass(frozen=True)
class Assets:
    """All cut-outs and photos of an asset folder.

    Args:
        cutouts (list[Cutout]): Labelled cut-outs, sorted by name; the position is the identity index.
        distractors (list[Cutout]): Unlabelled cut-outs.
        photos (list[Photo]): Backgrounds.
        licences (dict[str, int]): Number of source pictures per package and licence.
        fingerprint (str): Digest of the asset list.
    """

    cutouts: list[Cutout]
    distractors: list[Cutout]
    photos: list[Photo]
    licences: dict[str, int]
    fingerprint: str

    @property
    def classes(self) -> list[str]:
        return sorted({cutout.label for cutout in self.cutouts})

    @classmethod
    def load(cls, folder: str | Path) -> 'Assets':
        """Read an asset folder.

        Raises:
            AssetError: If ``assets.json`` or a file that it names is missing or unreadable.
        """
        folder = Path(folder)
        listing = read_listing(folder)
        return cls(
            cutouts=[_load_cutout(folder, entry) for entry in listing['cutouts']],
            distractors=[_load_cutout(folder, entry) for entry in listing['distractors']],
            photos=[Photo(entry['name'], _load(folder, entry, 'RGB')) for entry in listing['photos']],
            licences=count_licences(listing),
            fingerprint=fingerprint(listing),
        )

    def split(self, seed: int, train_fraction: float) -> dict[str, Split]:
        """Split cut-outs (per class), distractors and photos into ``train`` and ``test``.

        Args:
            seed (int): The same seed gives the same split.
            train_fraction (float): Share of the train side, in (0, 1); each side gets at least one of each.
        """
        rng = np.random.default_rng([seed, 0x5EED])
        groups = [[c for c in self.cutouts if c.label == label] for label in self.classes]
        halves = [_split_list(group, train_fraction, rng) for group in groups]
        cutouts = [[c for half in halves for c in half[side]] for side in (0, 1)]
        distractors = _split_list(self.distractors, train_fraction, rng) if self.distractors else ([], [])
        photos = _split_list(self.photos, train_fraction, rng)
        return {name: Split(cutouts[i], distractors[i], photos[i]) for i, name in enumerate(('train', 'test'))}


def _split_list(items: list, train_fraction: float, rng: np.random.Generator) -> tuple[list, list]:
    count = min(max(round(train_fraction * len(items)), 1), len(items) - 1)
    train = set(rng.permutation(len(items))[:count].tolist())
    return [x for i, x in enumerate(items) if i in train], [x for i, x in enumerate(items) if i not in train]


def read_listing(folder: str | Path) -> dict:
    """Read and check ``assets.json``."""
    path = Path(folder, 'assets.json')
    try:
        listing = json.loads(path.read_text())
    except FileNotFoundError:
        raise AssetError(f'{folder} is no asset folder: it has no assets.json') from None
    except json.JSONDecodeError as error:
        raise AssetError(f'{path} is not valid JSON ({error}); delete the folder and build it again') from None
    if listing.get('version') != ASSETS_VERSION:
        raise AssetError(
            f'{path} has version {listing.get("version")}, expected {ASSETS_VERSION}: delete the folder and build it '
            'again'
        )
    return listing


def fingerprint(listing: dict) -> str:
    return hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()[:16]


def count_licences(listing: dict) -> dict[str, int]:
    entries = [entry for kind in ('cutouts', 'distractors', 'photos') for entry in listing[kind]]
    return dict(sorted(Counter(f'{entry["package"]}: {entry["licence"]}' for entry in entries).items()))


def _load(folder: Path, entry: dict, mode: str) -> np.ndarray:
    try:
        return np.asarray(read_image(folder / entry['file'], mode, max(CUTOUT_SIDE, PHOTO_SIDE)))
    except UnusableImageError as error:
        raise AssetError(f'The asset folder is damaged, build it again: {error}') from error


def _load_cutout(folder: Path, entry: dict) -> Cutout:
    return Cutout(entry['name'], entry['class'], premultiply(_load(folder, entry, 'RGBA')), entry['mirror'])


def premultiply(image: np.ndarray) -> np.ndarray:
    """Multiply the colours of an (H, W, 4) uint8 picture by its alpha, so that it can be scaled without fringes."""
    alpha = image[..., 3:].astype(np.uint16)
    return np.concatenate([(image[..., :3] * alpha + 127) // 255, alpha], axis=-1).astype(np.uint8)


def find_own_sources(cutouts: str | Path, photos: str | Path, licence: str = 'unknown') -> list[Source]:
    """List a user's own pictures: ``cutouts/<class>/**`` with alpha, ``photos/**`` of any kind.

    A class folder named ``distractor`` holds unlabelled cut-outs.

    Raises:
        AssetError: If a folder is missing or has no class folders.
    """
    for folder in (cutouts, photos):
        if not Path(folder).is_dir():
            raise AssetError(f'{folder} is not a folder')
    cutouts, photos = Path(cutouts), Path(photos)
    classes = sorted(path for path in cutouts.iterdir() if path.is_dir())
    if not classes:
        raise AssetError(f'{cutouts} has no class folders; expected {cutouts}/<class>/<picture>.png')
    found = [(path, folder.name, cutouts) for folder in classes for path in _pictures(folder)]
    found += [(path, None, photos) for path in _pictures(photos)]
    return [
        Source(path, label, path.stem, 'own', f'{root.name}/{path.relative_to(root).as_posix()}', licence, 'unknown')
        for path, label, root in found
    ]


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if path.suffix.lower() in PICTURE_SUFFIXES)


def build_assets(sources: list[Source], out: str | Path) -> dict:
    """Choose the usable source pictures and write the compact asset folder.

    Left out, with the reason in ``assets.json``: unreadable files, drawings, pictures without a real alpha mask, too
    small or monochrome photos, and near-duplicates of a picture that is kept.

    Args:
        sources (list[Source]): Cut-outs and photos.
        out (str | Path): The folder to make; must not exist.

    Returns:
        dict: The content of ``assets.json``.

    Raises:
        AssetError: If ``out`` exists, or fewer than two classes of two cut-outs or two photos remain.
    """
    out = Path(out)
    if out.exists():
        raise AssetError(f'{out} exists already; delete it to build it again')
    chosen, rejected = choose_sources(sources)
    _check_enough(chosen, rejected)
    with make_folder_atomically(out) as temporary:
        return _write_assets(chosen, rejected, temporary)


def choose_sources(sources: list[Source]) -> tuple[list[tuple[Source, Image.Image]], dict[str, str]]:
    """Decode the sources and sort out what cannot be used.

    Returns:
        tuple: The usable (source, picture) pairs, and a reason for every rejected path.
    """
    usable, rejected = [], {}
    for source in sources:
        image, reason = _read_source(source)
        if image is None:
            rejected[source.source] = reason
        else:
            usable.append((source, image))
    chosen = []
    for is_photo in (False, True):
        group = [pair for pair in usable if (pair[0].label is None) == is_photo]
        # The largest version of a picture is the one to keep; labelled cut-outs go before distractors.
        group.sort(key=lambda pair: (pair[0].label == 'distractor', -max(pair[1].info['original'])))
        repeated = dict(near_duplicates([signature(image) for _, image in group]))
        rejected.update({group[i][0].source: f'repeats {group[k][0].source}' for i, k in repeated.items()})
        chosen += [pair for index, pair in enumerate(group) if index not in repeated]
    return sorted(chosen, key=lambda pair: pair[0].source), rejected


def _read_source(source: Source) -> tuple[Image.Image | None, str]:
    is_photo = source.label is None
    try:
        with open_regular(source.path) as file, Image.open(file) as header:
            original = header.size
        image = read_image(source.path, 'RGB' if is_photo else 'RGBA', PHOTO_SIDE if is_photo else 4 * PHOTO_SIDE)
    except (UnusableImageError, OSError) as error:
        warnings.warn(f'Left out: {error}', stacklevel=2)
        return None, 'cannot be decoded'
    image, reason = _prepare_photo(image) if is_photo else _prepare_cutout(image)
    if image is not None:
        image.info['original'] = original
    return image, reason


def _prepare_photo(image: Image.Image) -> tuple[Image.Image | None, str]:
    if min(image.size) < MIN_PHOTO_SIDE:
        return None, f'smaller than {MIN_PHOTO_SIDE} pixels'
    if np.asarray(image.convert('L')).std() < MIN_PHOTO_CONTRAST:
        return None, 'monochrome'
    return image, ''


def _prepare_cutout(image: Image.Image) -> tuple[Image.Image | None, str]:
    cropped = crop_to_object(image)
    if cropped is None or not has_real_alpha(cropped):
        return None, 'no real alpha mask, or too small'
    if not is_photo_like(cropped):
        return None, 'a drawing'
    cropped.thumbnail((CUTOUT_SIDE, CUTOUT_SIDE), Image.Resampling.LANCZOS)
    return cropped, ''


def _check_enough(chosen: list[tuple[Source, Image.Image]], rejected: dict[str, str]) -> None:
    counts = Counter(source.label for source, _ in chosen)
    photos = counts.pop(None, 0)
    counts.pop('distractor', None)
    classes = [label for label, count in counts.items() if count >= MIN_CUTOUTS_PER_CLASS]
    if len(classes) < 2 or photos < MIN_PHOTOS:
        raise AssetError(
            f'Not enough usable pictures: {dict(counts)} cut-outs per class and {photos} photos ({len(rejected)} left '
            f'out). At least 2 classes of {MIN_CUTOUTS_PER_CLASS} cut-outs and {MIN_PHOTOS} photos are needed; fetch '
            'more packages or pass pictures of your own.'
        )


def _write_assets(chosen: list[tuple[Source, Image.Image]], rejected: dict[str, str], folder: Path) -> dict:
    counts = Counter(source.label for source, _ in chosen)
    listing: dict = dict(version=ASSETS_VERSION, cutouts=[], distractors=[], photos=[])
    taken: set[str] = set()
    for source, image in chosen:
        if source.label not in (None, 'distractor') and counts[source.label] < MIN_CUTOUTS_PER_CLASS:
            rejected[source.source] = 'the only cut-out of its class'
            continue
        name = _unique_name(source, taken)
        kind = {None: 'photos', 'distractor': 'distractors'}.get(source.label, 'cutouts')
        listing[kind].append(_write_asset(folder, kind, name, source, image))
    for kind in ('cutouts', 'distractors', 'photos'):
        listing[kind].sort(key=lambda entry: entry['name'])
    listing['rejected'] = dict(sorted(rejected.items()))
    Path(folder, 'assets.json').write_text(json.dumps(listing, indent=1) + '\n')
    return listing


def _unique_name(source: Source, taken: set[str]) -> str:
    stem = ''.join(c if c.isalnum() else '-' for c in source.name.lower()).strip('-')
    prefix = source.label or 'photo'
    name = f'{prefix}/{stem}'
    number = 2
    while name in taken:
        name = f'{prefix}/{stem}-{number}'
        number += 1
    taken.add(name)
    return name


def _write_asset(folder: Path, kind: str, name: str, source: Source, image: Image.Image) -> dict:
    if kind == 'photos':
        file, options = f'photos/{Path(name).name}.jpg', dict(format='JPEG', quality=90)
    else:
        place = f'cutouts/{name}' if kind == 'cutouts' else f'distractors/{Path(name).name}'
        file, options = f'{place}.webp', dict(format='WEBP', quality=90, method=4)
    original = image.info.pop('original')
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(image)).save(path, **options)
    entry = dict(name=name, file=file, source=source.source, package=source.package, licence=source.licence)
    entry.update(copyright=source.copyright, original_size=list(original))
    if kind != 'photos':
        entry.update({'class': source.label, 'mirror': source.mirror})
    entry['sha256'] = hashlib.sha256(path.read_bytes()).hexdigest()
    return entry
