"""Prepare datasets.

``composites`` generates photo composites, ``assets`` the folder they need, ``shards`` packs a folder of images.
"""

import argparse
import re
import signal
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mm_sop.demo import (
    OBJECT_CENTERED,
    PACKAGES,
    SCENE,
    SETS,
    CompositeSettings,
    Style,
    build_assets,
    fetch_packages,
    find_cutouts,
    find_own_sources,
    find_photos,
    generate_composites,
    write_contact_sheets,
)
from mm_sop.demo.packages import OPTIONAL_PACKAGES
from mm_sop.utils.failures import report_failures

_ROOT = Path(__file__).resolve().parents[3]
# In a checkout beside the package, after installation in the current folder.
CACHE = (_ROOT if (_ROOT / 'pyproject.toml').is_file() else Path()) / '.cache'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    composites = commands.add_parser('composites', help='generate photo composites', description=generate.__doc__)
    composites.add_argument('--out', type=Path, default=Path('data/composites'), help='where the sets go')
    composites.add_argument('--only', nargs='+', choices=list(SETS), metavar='SET', help=f'sets: {", ".join(SETS)}')
    composites.add_argument('--workers', type=int, help='processes (default: one per core)')
    composites.add_argument('--contact-sheet', action='store_true', help='also draw OUT/contact_sheets/SET.png')
    composites.add_argument(
        '--assets', type=Path, default=CACHE / 'composite-assets', help='asset folder; built if it is not there'
    )
    add_package_options(composites)
    add_setting_options(composites.add_argument_group('settings'))
    assets = commands.add_parser('assets', help='build the asset folder only', description=prepare_assets.__doc__)
    assets.add_argument('--assets', type=Path, default=CACHE / 'composite-assets', help='the folder to build')
    assets.add_argument('--cutouts', type=Path, help='own cut-outs with alpha: CUTOUTS/<class>/*.png')
    assets.add_argument('--photos', type=Path, help='own background photos')
    assets.add_argument('--license', default='unknown', help='license of the own images')
    add_package_options(assets)
    shards = commands.add_parser('shards', help='pack a folder of images', description=pack_shards.__doc__)
    shards.add_argument('folder', type=Path, help='folder with images, flat or nested')
    shards.add_argument('out', type=Path, help='folder to create')
    shards.add_argument('--size', type=parse_bytes, default='500M', help='bytes of a shard [%(default)s]')
    shards.add_argument('--extensions', nargs='+', metavar='.EXT', help='of the images (default: all usual ones)')
    shards.add_argument('--workers', type=int, default=4, help='shards that are written at a time [%(default)s]')
    args = parser.parse_args()
    if args.command == 'assets' and (args.cutouts is None) != (args.photos is None):
        parser.error('--cutouts and --photos go together')
    return args


def add_package_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--packages', type=Path, default=CACHE / 'packages', help='unpacked Debian packages; fetched if not there'
    )
    parser.add_argument(
        '--optional-packages', action='store_true', help=f'also fetch {", ".join(OPTIONAL_PACKAGES)} (more photos)'
    )


def add_setting_options(group: argparse._ArgumentGroup) -> None:
    for field in fields(CompositeSettings):
        option, text = '--' + field.name.replace('_', '-'), field.metadata['description'].replace('%', '%%')
        if isinstance(field.default, Style):
            group.add_argument(option, nargs='+', default=[], metavar='KEY=VALUE', help=f'{text} Ranges as LOW,HIGH.')
        elif isinstance(field.default, tuple):
            shown = 'x'.join(map(str, field.default))
            group.add_argument(option, type=parse_size, metavar='WxH', default=field.default, help=f'{text} [{shown}]')
        else:
            kind = type(field.default)
            text = f'{text} [{field.default}]'
            group.add_argument(option, type=kind, metavar=kind.__name__.upper(), default=field.default, help=text)


def parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if match is None:
        raise argparse.ArgumentTypeError(f'expected WIDTHxHEIGHT, for example 160x128, got {text!r}')
    return int(match[1]), int(match[2])


def parse_bytes(text: str) -> int:
    match = re.fullmatch(r'(\d+)([KMG]?)B?', text.upper())
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f'expected a number of bytes, for example 500M or 2G, got {text!r}')
    return int(match[1]) * 1000 ** ' KMG'.index(match[2] or ' ')


def change_style(style: Style, changes: list[str]) -> Style:
    defaults: dict[str, Any] = {field.name: field.default for field in fields(Style)}
    values: dict[str, Any] = {}
    for change in changes:
        key, _, value = change.partition('=')
        if key not in defaults or not value:
            raise ValueError(f'style setting {change!r}: expected KEY=VALUE with a KEY of {", ".join(defaults)}')
        is_range = isinstance(defaults[key], tuple)
        kind = type(defaults[key][0]) if is_range else float
        try:
            numbers = tuple(map(kind, value.split(','))) if is_range else (float(value),)
        except ValueError:
            raise ValueError(f'style setting {change!r}: {value!r} is neither a number nor a LOW,HIGH pair') from None
        if is_range and len(numbers) != 2:
            raise ValueError(f'style setting {change!r}: expected {key}=LOW,HIGH')
        values[key] = numbers if is_range else numbers[0]
    return replace(style, **values)


def prepare_assets(args: argparse.Namespace) -> None:
    """Build the compact asset folder, from Debian packages or from own images."""
    started = time.perf_counter()
    if getattr(args, 'cutouts', None):
        sources = find_own_sources(args.cutouts, args.photos, args.license)
    else:
        fetch_packages(args.packages, PACKAGES + OPTIONAL_PACKAGES * args.optional_packages)
        sources = find_cutouts(args.packages) + find_photos(args.packages)
    print(f'Choosing from {len(sources)} images ...', flush=True)
    assets = build_assets(sources, args.assets)
    counts = ', '.join(f'{len(assets[kind])} {kind}' for kind in ('cutouts', 'distractors', 'photos'))
    print(f'{args.assets}: {counts}, {len(assets["rejected"])} left out ({time.perf_counter() - started:.1f} s)')


def generate(args: argparse.Namespace) -> None:
    """Generate datasets by pasting photo cut-outs on photos. A set that is there already is left as it is."""
    started = time.perf_counter()
    values = {field.name: getattr(args, field.name) for field in fields(CompositeSettings)}
    values['object_style'] = change_style(OBJECT_CENTERED, args.object_style)
    values['scene_style'] = change_style(SCENE, args.scene_style)
    settings = CompositeSettings(**values)
    if not args.assets.exists():
        prepare_assets(args)
    manifests = generate_composites(args.out, args.assets, settings, args.only, args.workers)
    for name, manifest in manifests.items():
        counts = ', '.join(f'{count} {what}' for what, count in manifest['counts'].items())
        print(f'{args.out / name}: {counts}')
    if args.contact_sheet:
        print('Contact sheets:', *write_contact_sheets(args.out, list(manifests)))
    print(f'Done in {time.perf_counter() - started:.1f} s')


def pack_shards(args: argparse.Namespace) -> None:
    """Pack the images below a folder into tar archives for ShardedImages, unchanged. OUT appears when all are complete;
    the same command resumes an interrupted run.
    """
    # Loads PyTorch, which the other commands do without.
    from mm_sop.datasets.image_files import EXTENSIONS
    from mm_sop.datasets.shard_writer import LEFT_OUT, write_shards

    started = shown = time.perf_counter()

    def show(done: int, total: int) -> None:
        nonlocal shown
        if time.perf_counter() - shown > 5:
            shown = time.perf_counter()
            print(f'{done} of {total} shards', flush=True)

    print(f'Looking for images in {args.folder} ...', flush=True)
    written = write_shards(args.folder, args.out, args.size, args.extensions or EXTENSIONS, args.workers, show)
    kept = f', {written.kept} of them by an earlier run' if written.kept else ''
    print(
        f'{args.out}: {written.images} images in {written.shards} shards{kept} ({time.perf_counter() - started:.1f} s)'
    )
    if written.left_out:
        print(f'{written.left_out} files could not be read and are left out: {args.out / LEFT_OUT}')


@report_failures('prepare_data.py', ValueError, FileExistsError, FileNotFoundError)
def main() -> None:
    # Let a terminated run remove its unfinished folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = parse_args()
    try:
        {'composites': generate, 'assets': prepare_assets, 'shards': pack_shards}[args.command](args)
    except KeyboardInterrupt:
        resumes = args.command == 'shards'
        sys.exit(f'interrupted; {"the same command resumes" if resumes else "nothing unfinished was left behind"}')


if __name__ == '__main__':
    main()
