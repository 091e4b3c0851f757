"""The Debian packages that hold the photo cut-outs and photos: fetching, licences, and which files are used.

The packages are downloaded and unpacked below a folder of the project; nothing is installed and no root is needed.
"""

import fnmatch
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    'tuxpaint-stamps-default',
    'lomiri-wallpapers-16.04',
    'lomiri-wallpapers-20.04',
    'mate-backgrounds',
)
OPTIONAL_PACKAGES = ('plasma-workspace-wallpapers',)

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
    'animals/amphibians',
    'animals/insects',
    'animals/lizards',
    'animals/shellfish',
    'clothes',
    'food/nuts',
    'food/spices',
    'hobbies',
    'household',
    'medical',
    'people',
    'plants/trees',
    'seasonal/christmas',
    'space',
    'sports',
    'town',
)
DRAWING_FOLDERS = {'cartoon', 'toys', 'plastic', 'houses', 'flags', 'body_parts'}
EXCLUDED_STAMPS = {
    'sedan_police',  # an overlay for another stamp
    '0_sun',  # no solid part
    'button',  # drawings that pass for photos
    'Santa',
    'nutcracker',  # class objects in a distractor folder
    'scissors_small_closed',
    'scissors_small_open',
}
# Where the photos lie, and how the package's copyright file names that folder.
PHOTO_FOLDERS = {
    'lomiri-wallpapers-16.04': ('usr/share/backgrounds', '16.04'),
    'lomiri-wallpapers-20.04': ('usr/share/backgrounds', '20.04'),
    'mate-backgrounds': ('usr/share/backgrounds/mate/nature', 'nature'),
    'plasma-workspace-wallpapers': ('usr/share/wallpapers', '*'),
}


class PackageError(RuntimeError):
    """A package that cannot be fetched or unpacked."""


@dataclass(frozen=True)
class Source:
    """A source picture and what is known about it.

    Args:
        path (Path): The picture file.
        label (str | None): The class of a cut-out, ``'distractor'``, or None for a photo.
        name (str): A short name, made unique later.
        package (str): Where it comes from: a package name, or ``'own'``.
        source (str): The path inside the package.
        licence (str): Short name of the licence.
        copyright (str): Copyright holders.
        mirror (bool): Whether the picture may be mirrored left to right.
    """

    path: Path
    label: str | None
    name: str
    package: str
    source: str
    licence: str
    copyright: str
    mirror: bool = True


def find_package(directory: Path, name: str) -> Path | None:
    """The root of an unpacked package, in a folder of its own or in a common root; None if it is not there."""
    roots = (directory / name, directory)
    return next((root for root in roots if (root / 'usr/share/doc' / name / 'copyright').is_file()), None)


def fetch_packages(directory: Path, names: Iterable[str] = PACKAGES) -> None:
    """Download and unpack the packages that are not there yet.

    A package that this distribution does not have is left out with a warning. A machine without package lists gets
    some below ``directory/.apt``, for which no root is needed.

    Args:
        directory (Path): Each package is unpacked to ``directory/NAME``.
        names (Iterable[str]): The package names.

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
                f'{program} is not there, so the package {name} cannot be fetched. Build the asset folder on a Debian '
                'or Ubuntu machine (tools/prepare_data.py assets), copy it here and pass it with --assets.'
            )
    directory.mkdir(parents=True, exist_ok=True)
    apt = ['apt-get', *_list_options(directory.resolve() / '.apt')]
    with tempfile.TemporaryDirectory(prefix=f'.{name}.', dir=directory) as temporary:
        downloaded = subprocess.run([*apt, 'download', name], cwd=temporary, capture_output=True, text=True)
        archives = list(Path(temporary).glob('*.deb'))
        if downloaded.returncode != 0 or not archives:
            _report_failed_download(name, downloaded.stderr)
            return
        unpacked = Path(temporary, 'root')
        result = subprocess.run(['dpkg-deb', '-x', archives[0], unpacked], capture_output=True, text=True)
        if result.returncode != 0:
            raise PackageError(f'{archives[0].name} cannot be unpacked: {result.stderr.strip()}')
        unpacked.rename(directory / name)


def _list_options(folder: Path) -> list[str]:
    """Options that let apt-get use package lists of its own in a folder, where the machine has none."""
    if any(APT_LISTS.glob('*Packages*')):
        return []
    options = ['-o', f'Dir::State::lists={folder}/lists', '-o', f'Dir::Cache={folder}/cache']
    if not any(folder.glob('lists/*Packages*')):
        print('This machine has no package lists: fetching them (about 10 MB) ...', flush=True)
        for part in ('lists/partial', 'cache/archives/partial'):
            (folder / part).mkdir(parents=True, exist_ok=True)
        updated = subprocess.run(['apt-get', *options, 'update'], capture_output=True, text=True)
        if updated.returncode != 0:
            raise PackageError(f'apt-get update failed: {updated.stderr.strip()}\nCheck the network.')
    return options


def _report_failed_download(name: str, message: str) -> None:
    if 'Unable to locate package' in message or 'No candidate' in message or "Can't select" in message:
        warnings.warn(f'The package lists of this machine have no {name}; going on without it.', stacklevel=4)
        return
    raise PackageError(
        f'apt-get download {name} failed: {message.strip()}\n'
        'Check the network, or run "sudo apt-get update" if the package lists are old.'
    )


def find_cutouts(directory: Path) -> list[Source]:
    """The stamps that may be photo cut-outs of the ten classes, and those that serve as unlabelled distractors."""
    name = PACKAGES[0]
    root = find_package(directory, name)
    if root is None:
        return []
    licences = read_licences(root / 'usr/share/doc' / name / 'copyright')
    sources = []
    for path in sorted((root / STAMPS).rglob('*.png')):
        label = _stamp_label(path.relative_to(root / STAMPS))
        if label is not None:
            inside = path.relative_to(root).as_posix()
            licence, holders = find_licence(licences, inside) or ('unknown', 'unknown')
            sources.append(Source(path, label, path.stem, name, inside, licence, holders, may_be_mirrored(path)))
    return sources


def _stamp_label(path: Path) -> str | None:
    stem = path.stem.removesuffix('_mirror')
    if DRAWING_FOLDERS & set(path.parts) or stem in EXCLUDED_STAMPS:
        return None
    folders = {folder: label for label, folders in CLASS_FOLDERS.items() for folder in folders}
    folders.update(dict.fromkeys(DISTRACTOR_FOLDERS, 'distractor'))
    # The deepest folder decides: tools lie below household, whose other stamps are distractors.
    return next((folders[p.as_posix()] for p in path.parents if p.as_posix() in folders), None)


def may_be_mirrored(path: Path) -> bool:
    """Whether the description beside a stamp allows mirroring.

    ``nomirror`` forbids left to right; ``noflip`` forbids upside down only, which is never done here. A stamp with a
    second picture for its mirror image, because of a text for example, must not be mirrored either.
    """
    description = path.with_name(path.stem + '.dat')
    if path.with_name(path.stem + '_mirror.png').is_file():
        return False
    return not (description.is_file() and 'nomirror' in description.read_text(errors='replace').split())


def find_photos(directory: Path) -> list[Source]:
    """The background photos of all unpacked packages."""
    sources = []
    for name, (folder, documented) in PHOTO_FOLDERS.items():
        root = find_package(directory, name)
        if root is None:
            continue
        licences = read_licences(root / 'usr/share/doc' / name / 'copyright')
        for title, path in _largest_versions(root / folder).items():
            listed = find_licence(licences, f'{documented}/{path.relative_to(root / folder).as_posix()}')
            # Packages unpacked into one common root share a folder: a photo belongs to the one that documents it.
            if listed is not None:
                sources.append(Source(path, None, title, name, path.relative_to(root).as_posix(), *listed))
    return sources


def _largest_versions(folder: Path) -> dict[str, Path]:
    """The largest file of each photo, where a subfolder holds one photo cut to several screens."""
    versions: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob('*.jpg')):
        if not path.is_symlink():
            versions.setdefault(Path(path.relative_to(folder).parts[0]).stem, []).append(path)
    return {title: max(paths, key=lambda path: path.stat().st_size) for title, paths in versions.items()}


def read_licences(path: Path) -> list[tuple[str, str, str]]:
    """Read a machine-readable Debian copyright file.

    Returns:
        list[tuple[str, str, str]]: (file name pattern, licence, copyright holders) in the order of the file; later
        entries take precedence.
    """
    entries = []
    for paragraph in path.read_text(encoding='utf-8', errors='replace').split('\n\n'):
        fields = _read_fields(paragraph)
        for pattern in fields.get('Files', '').split():
            entries.append((pattern, fields.get('License', 'unknown').split('\n')[0], fields.get('Copyright', '')))
    return entries


def _read_fields(paragraph: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ''
    for line in paragraph.strip('\n').splitlines():
        if line[:1].isspace():
            fields[name] = f'{fields.get(name, "")}\n{line.strip()}'
        elif ':' in line:
            name, value = line.split(':', 1)
            fields[name] = value.strip()
    return fields


def find_licence(entries: list[tuple[str, str, str]], name: str) -> tuple[str, str] | None:
    """Licence and copyright holders of a file, by the last pattern that matches its name; None if none does."""
    matching = [entry for entry in entries if fnmatch.fnmatchcase(name, entry[0])]
    return (matching[-1][1], ', '.join(matching[-1][2].split('\n'))) if matching else None
