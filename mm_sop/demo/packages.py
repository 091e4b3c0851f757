"""Debian packages with photo cut-outs and photos: download, licenses, and the selection of files.

The packages are downloaded and unpacked below a folder of the project; nothing is installed, root is not needed.
"""

import email
import fnmatch
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mm_sop.utils.failures import UserError

PACKAGES = ('tuxpaint-stamps-default', 'lomiri-wallpapers-16.04', 'lomiri-wallpapers-20.04', 'mate-backgrounds')
OPTIONAL_PACKAGES = ('plasma-workspace-wallpapers',)

_run = partial(subprocess.run, capture_output=True, text=True, check=False)

APT_LISTS = Path('/var/lib/apt/lists')
STAMPS = 'usr/share/tuxpaint/stamps'
CLASS_FOLDERS = {
    'birds': ('animals/birds',),
    'fish': ('animals/fish',),
    'flowers': ('plants/flowers',),
    'fruit': ('food/fruit',),
    'mammals': ('animals/mammals',),
    'music': ('hobbies/music',),
    'signs': ('town/roadsigns',),
    'tools': ('household/tools',),
    'vegetables': ('food/vegetables',),
    'vehicles': ('vehicles', 'military/vehicles'),
}
DISTRACTOR_FOLDERS = (
    'animals/amphibians', 'animals/insects', 'animals/lizards', 'animals/shellfish', 'clothes', 'food/nuts',
    'food/spices', 'hobbies', 'household', 'medical', 'people', 'plants/trees', 'seasonal/christmas', 'space',
    'sports', 'town',
)  # fmt: skip
DRAWING_FOLDERS = {'cartoon', 'toys', 'plastic', 'houses', 'flags', 'body_parts'}
EXCLUDED_STAMPS = {
    'sedan_police',  # an overlay for another stamp
    '0_sun',  # no solid pixels
    'button',  # drawings that look like photos to the filter
    'Santa',
    'nutcracker',  # class objects in a distractor folder
    'scissors_small_closed',
    'scissors_small_open',
}
# Folder of the photos, and the name of that folder in the package's copyright file.
PHOTO_FOLDERS = {
    'lomiri-wallpapers-16.04': ('usr/share/backgrounds', '16.04'),
    'lomiri-wallpapers-20.04': ('usr/share/backgrounds', '20.04'),
    'mate-backgrounds': ('usr/share/backgrounds/mate/nature', 'nature'),
    'plasma-workspace-wallpapers': ('usr/share/wallpapers', '*'),
}


class PackageError(UserError, RuntimeError):
    """Package that cannot be fetched or unpacked."""


@dataclass(frozen=True)
class Source:
    """Source image with its provenance."""

    path: Path
    label: str | None  # Class of a cut-out, ``'distractor'``, or None for a photo
    name: str  # Short name, made unique later
    package: str  # Name of the package, or ``'own'`` for images of the user
    source: str  # Path inside the package
    license: str  # Short name of the license
    copyright: str
    mirror: bool = True  # Whether the image may be mirrored left to right


def find_package(directory: Path, name: str) -> Path | None:
    """Return the root of an unpacked package, in a separate folder or in a common root; None if it is missing."""
    roots = (directory / name, directory)
    return next((root for root in roots if (root / 'usr/share/doc' / name / 'copyright').is_file()), None)


def fetch_packages(directory: Path, names: Iterable[str] = PACKAGES) -> None:
    """Download missing packages and unpack each to ``directory/NAME``.

    A package that the distribution does not have is skipped with a warning. On a machine without package lists, they
    are downloaded to ``directory/.apt``, which does not need root.

    Raises:
        PackageError: If ``apt-get`` or ``dpkg-deb`` is missing, or a package is known but cannot be downloaded.
    """
    for name in names:
        if find_package(directory, name) is None:
            print(f'Fetching the package {name} ...', flush=True)
            _fetch_package(directory, name)


def _fetch_package(directory: Path, name: str) -> None:
    for program in ('apt-get', 'dpkg-deb'):
        if shutil.which(program) is None:
            raise PackageError(
                f'{program} is not installed, so the package {name} cannot be fetched. Build the asset folder on a '
                'Debian or Ubuntu machine (tools/prepare_data.py assets), copy it here and pass it with --assets.'
            )
    directory.mkdir(parents=True, exist_ok=True)
    apt = ['apt-get', *_list_options(directory.resolve() / '.apt')]
    with tempfile.TemporaryDirectory(prefix=f'.{name}.', dir=directory) as temporary:
        downloaded = _run([*apt, 'download', name], cwd=temporary)
        message, archives = downloaded.stderr, list(Path(temporary).glob('*.deb'))
        if downloaded.returncode != 0 or not archives:
            if any(text in message for text in ('Unable to locate package', 'No candidate', "Can't select")):
                text = f'The package lists of this machine do not contain {name}; continuing without it.'
                warnings.warn(text, stacklevel=3)
                return
            raise PackageError(
                f'apt-get download {name} failed: {message.strip()}\n'
                'Check the network, or run "sudo apt-get update" if the package lists are old.'
            )
        unpacked = Path(temporary, 'root')
        result = _run(['dpkg-deb', '-x', archives[0], unpacked])
        if result.returncode != 0:
            raise PackageError(f'{archives[0].name} cannot be unpacked: {result.stderr.strip()}')
        unpacked.rename(directory / name)


def _list_options(folder: Path) -> list[str]:
    """Options that let apt-get use package lists in a folder if the machine has none."""
    if any(APT_LISTS.glob('*Packages*')):
        return []
    options = ['-o', f'Dir::State::lists={folder}/lists', '-o', f'Dir::Cache={folder}/cache']
    if not any(folder.glob('lists/*Packages*')):
        print('This machine has no package lists: fetching them (about 10 MB) ...', flush=True)
        for part in ('lists/partial', 'cache/archives/partial'):
            (folder / part).mkdir(parents=True, exist_ok=True)
        updated = _run(['apt-get', *options, 'update'])
        if updated.returncode != 0:
            raise PackageError(f'apt-get update failed: {updated.stderr.strip()}\nCheck the network.')
    return options


def find_cutouts(directory: Path) -> list[Source]:
    """Find the stamps of the ten classes, and those that serve as unlabeled distractors."""
    name = PACKAGES[0]
    root = find_package(directory, name)
    if root is None:
        return []
    licenses = read_licenses(root / 'usr/share/doc' / name / 'copyright')
    folders = {folder: label for label, folders in CLASS_FOLDERS.items() for folder in folders}
    folders.update(dict.fromkeys(DISTRACTOR_FOLDERS, 'distractor'))
    sources = []
    for path in sorted((root / STAMPS).rglob('*.png')):
        below = path.relative_to(root / STAMPS)
        # The deepest folder decides: tools are below household, whose other stamps are distractors.
        label = next((folders[p.as_posix()] for p in below.parents if p.as_posix() in folders), None)
        is_excluded = path.stem.removesuffix('_mirror') in EXCLUDED_STAMPS or DRAWING_FOLDERS & set(below.parts)
        if label is not None and not is_excluded:
            inside = path.relative_to(root).as_posix()
            license, holders = find_license(licenses, inside) or ('unknown', 'unknown')
            sources.append(Source(path, label, path.stem, name, inside, license, holders, may_be_mirrored(path)))
    return sources


def may_be_mirrored(path: Path) -> bool:
    """Whether the description beside a stamp allows mirroring.

    ``nomirror`` forbids left to right; ``noflip`` forbids only upside down, which is never done here. A stamp with a
    separate mirror image, for example because of text, must not be mirrored either.
    """
    description = path.with_name(path.stem + '.dat')
    if path.with_name(path.stem + '_mirror.png').is_file():
        return False
    return not (description.is_file() and 'nomirror' in description.read_text(errors='replace').split())


def find_photos(directory: Path) -> list[Source]:
    """Find the background photos of all unpacked packages."""
    sources = []
    for name, (folder, documented) in PHOTO_FOLDERS.items():
        root = find_package(directory, name)
        if root is None:
            continue
        licenses = read_licenses(root / 'usr/share/doc' / name / 'copyright')
        versions: dict[str, list[Path]] = {}
        for path in sorted((root / folder).rglob('*.jpg')):
            if not path.is_symlink():
                # A subfolder holds one photo cropped to several screens, of which the largest file is taken.
                title = Path(path.relative_to(root / folder).parts[0]).stem
                versions.setdefault(title, []).append(path)
        for title, paths in versions.items():
            path = max(paths, key=lambda path: path.stat().st_size)
            listed = find_license(licenses, f'{documented}/{path.relative_to(root / folder).as_posix()}')
            # Packages unpacked into a common root share a folder: a photo belongs to the package that documents it.
            if listed is not None:
                sources.append(Source(path, None, title, name, path.relative_to(root).as_posix(), *listed))
    return sources


def read_licenses(path: Path) -> list[tuple[str, str, str]]:
    """Parse a machine-readable Debian copyright file.

    Returns (file name pattern, license, copyright holders) in the order of the file; later entries take precedence.
    """
    entries = []
    for paragraph in path.read_text(encoding='utf-8', errors='replace').split('\n\n'):
        # The fields have the syntax of headers of an e-mail.
        fields = email.message_from_string(paragraph.strip('\n'))
        license = fields.get('License', 'unknown').split('\n')[0]
        holders = ', '.join(line.strip() for line in fields.get('Copyright', '').splitlines())
        entries += [(pattern, license, holders) for pattern in fields.get('Files', '').split()]
    return entries


def find_license(entries: list[tuple[str, str, str]], name: str) -> tuple[str, str] | None:
    """Return license and copyright holders of a file by the last matching pattern; None if none matches."""
    return next((entry[1:] for entry in reversed(entries) if fnmatch.fnmatchcase(name, entry[0])), None)
