"""Sources and the asset folder of the photo composites: decoding, selection, licenses, splitting."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from testing.composite_assets import make_assets, noisy_cutout, noisy_texture, write_sources

from mm_sop.demo import (
    AssetError,
    Assets,
    PackageError,
    UnusableImageError,
    build_assets,
    fetch_packages,
    find_cutouts,
    find_own_sources,
    find_photos,
    packages,
)
from mm_sop.demo import assets as assets_module
from mm_sop.demo.assets import premultiply
from mm_sop.demo.images import is_photo_like, near_duplicates, read_image, signature
from mm_sop.demo.packages import find_license, read_licenses


class TestDecoding:
    def test_palette_with_transparency(self, tmp_path):
        image = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8), mode='P')
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        image.save(tmp_path / 'palette.png', transparency=1)
        pixels = np.asarray(read_image(tmp_path / 'palette.png', 'RGBA', 64))
        assert pixels[0, 0].tolist() == [255, 0, 0, 255]
        assert pixels[1, 1].tolist() == [0, 0, 255, 255]
        assert pixels[0, 1, 3] == pixels[1, 0, 3] == 0

    def test_16_bit_gray(self, tmp_path):
        Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / 'deep.png')
        assert np.asarray(read_image(tmp_path / 'deep.png', 'RGB', 64))[0, :, 0].tolist() == [0, 128, 255]

    def test_cmyk(self, tmp_path):
        Image.new('CMYK', (32, 32), (0, 255, 255, 0)).save(tmp_path / 'print.jpg')
        red, green, blue = np.asarray(read_image(tmp_path / 'print.jpg', 'RGB', 64))[16, 16]
        assert red > 200 > 60 > max(green, blue)

    def test_orientation(self, tmp_path):
        image = Image.fromarray(np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None], 40, 0))
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / 'turned.jpg', exif=exif)
        pixels = np.asarray(read_image(tmp_path / 'turned.jpg', 'RGB', 64))
        assert pixels.shape == (60, 40, 3)
        assert pixels[50, 20, 0] > pixels[10, 20, 0] + 100

    def test_large_image_is_reduced(self, tmp_path):
        Image.fromarray(np.tile(noisy_texture(500, 250, 0), (4, 4, 1))).save(tmp_path / 'large.jpg')
        assert read_image(tmp_path / 'large.jpg', 'RGB', 160).size == (160, 80)

    @pytest.mark.parametrize('kind', ['truncated', 'text', 'empty', 'huge', 'missing'])
    def test_unusable_files_are_named(self, tmp_path, kind):
        path = tmp_path / f'{kind}.png'
        if kind == 'truncated':
            noisy_cutout(200, 200, 0).save(path)
            path.write_bytes(path.read_bytes()[:2000])
        elif kind == 'huge':
            Image.new('L', (12_001, 1)).save(path)
        elif kind != 'missing':
            path.write_text('no image' if kind == 'text' else '')
        with pytest.raises(UnusableImageError, match=f'{kind}.png'):
            read_image(path, 'RGBA', 64)


class TestChoice:
    def test_drawings_are_distinguished_from_photos(self):
        drawing = np.zeros((80, 80, 4), np.uint8)
        drawing[10:70, 10:70] = (200, 30, 30, 255)
        drawing[30:50, 30:50] = (30, 30, 200, 255)
        assert not is_photo_like(Image.fromarray(drawing))
        assert is_photo_like(noisy_cutout(80, 80, 1))

    def test_near_duplicates(self):
        first, other = noisy_cutout(120, 100, 1), noisy_cutout(120, 100, 2)
        smaller = first.resize((60, 50))
        mirrored = first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        darker = Image.fromarray((np.asarray(first) * np.array([0.95, 0.9, 0.95, 1])).astype(np.uint8))
        found = near_duplicates([signature(image) for image in (first, other, smaller, mirrored, darker)])
        assert found == [(2, 0), (3, 0), (4, 0)]

    def test_premultiply(self):
        image = np.random.default_rng(0).integers(0, 256, (5, 4, 4)).astype(np.uint8)
        result = premultiply(image)
        for y, x in np.ndindex(5, 4):
            *color, alpha = image[y, x].tolist()
            assert result[y, x].tolist() == [int(value * alpha / 255 + 0.5) for value in color] + [alpha]


class TestBuild:
    def test_asset_list_describes_the_files(self, tmp_path):
        folder = make_assets(tmp_path)
        asset_list = json.loads((folder / 'assets.json').read_text())
        assert [len(asset_list[kind]) for kind in ('cutouts', 'distractors', 'photos')] == [12, 4, 5]
        for entry in (*asset_list['cutouts'], *asset_list['distractors'], *asset_list['photos']):
            assert hashlib.sha256((folder / entry['file']).read_bytes()).hexdigest() == entry['sha256']
            assert entry['license'] == 'CC0-1.0'
        assert asset_list['cutouts'][1]['name'] == 'boats/boat-1'
        assert asset_list['cutouts'][1]['original_size'] == [70, 60]
        assert asset_list['photos'][0]['source'] == 'photos/view-0.jpg'

    def test_unusable_images_are_rejected_with_reasons(self, tmp_path):
        write_sources(tmp_path)
        boats = tmp_path / 'cutouts/boats'
        noisy_cutout(300, 300, 5).save(boats / 'broken.png')
        (boats / 'broken.png').write_bytes((boats / 'broken.png').read_bytes()[:3000])
        Image.open(boats / 'boat-0.png').resize((120, 120)).save(boats / 'again.png')
        Image.fromarray(noisy_texture(80, 80, 6)).save(boats / 'solid.png')
        Image.new('RGBA', (80, 80), (9, 9, 9, 255)).save(boats / 'flat.png')
        Image.new('RGBA', (80, 80), (9, 9, 9, 0)).save(boats / 'nothing.png')
        Image.new('RGB', (400, 400), (90, 120, 90)).save(tmp_path / 'photos/plain.jpg')
        noisy_cutout(100, 100, 7).convert('RGB').save(tmp_path / 'photos/small.jpg')
        with pytest.warns(UserWarning, match='broken.png'):
            asset_list = build_assets(find_own_sources(tmp_path / 'cutouts', tmp_path / 'photos'), tmp_path / 'assets')
        reasons = asset_list['rejected']
        assert reasons['cutouts/boats/broken.png'] == 'cannot be decoded'
        assert reasons['cutouts/boats/boat-0.png'] == 'repeats cutouts/boats/again.png'
        assert all('alpha' in reasons[f'cutouts/boats/{name}.png'] for name in ('solid', 'flat', 'nothing'))
        assert reasons['photos/plain.jpg'] == 'monochrome'
        assert 'smaller' in reasons['photos/small.jpg']
        assert len(asset_list['cutouts']) == 12

    def test_an_existing_folder_is_refused(self, tmp_path):
        folder = make_assets(tmp_path)
        with pytest.raises(AssetError, match='exists already'):
            build_assets([], folder)

    def test_too_little_leaves_nothing_behind(self, tmp_path):
        write_sources(tmp_path, photos=1)
        with pytest.raises(AssetError, match='1 photos'):
            build_assets(find_own_sources(tmp_path / 'cutouts', tmp_path / 'photos'), tmp_path / 'assets')
        assert sorted(path.name for path in tmp_path.iterdir()) == ['cutouts', 'photos']

    def test_a_failed_write_leaves_nothing_behind(self, tmp_path, monkeypatch):
        monkeypatch.setattr(assets_module, '_write_asset', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_assets(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ['cutouts', 'photos']

    def test_own_folders_are_checked(self, tmp_path):
        (tmp_path / 'empty').mkdir()
        with pytest.raises(AssetError, match='no class folders'):
            find_own_sources(tmp_path / 'empty', tmp_path / 'empty')
        with pytest.raises(AssetError, match='absent is not a folder'):
            find_own_sources(tmp_path / 'absent', tmp_path / 'empty')


class TestAssets:
    def test_load(self, tmp_path):
        assets = Assets.load(make_assets(tmp_path))
        assert assets.classes == ['boats', 'cups', 'keys']
        assert [cutout.name for cutout in assets.cutouts] == sorted(cutout.name for cutout in assets.cutouts)
        for cutout in assets.cutouts:
            assert (cutout.image[..., :3] <= cutout.image[..., 3:]).all()
        assert assets.licenses == {'own: CC0-1.0': 21}

    def test_damage_is_reported(self, tmp_path):
        folder = make_assets(tmp_path)
        with pytest.raises(AssetError, match='no assets.json'):
            Assets.load(tmp_path / 'photos')
        (folder / 'photos/view-0.jpg').unlink()
        with pytest.raises(AssetError, match='view-0.jpg'):
            Assets.load(folder)
        asset_list = json.loads((folder / 'assets.json').read_text())
        (folder / 'assets.json').write_text(json.dumps(dict(asset_list, version=0)))
        with pytest.raises(AssetError, match='version 0'):
            Assets.load(folder)
        (folder / 'assets.json').write_text('{')
        with pytest.raises(AssetError, match='not valid JSON'):
            Assets.load(folder)

    def test_split_is_disjoint_complete_and_fixed_by_the_seed(self, tmp_path):
        assets = Assets.load(make_assets(tmp_path))
        split, again, other = assets.split(3, 0.7), assets.split(3, 0.7), assets.split(4, 0.7)
        for kind in ('cutouts', 'distractors', 'photos'):
            train, test = (split[side].names()[kind] for side in ('train', 'test'))
            assert not set(train) & set(test)
            assert sorted(train + test) == sorted(item.name for item in getattr(assets, kind))
        assert {side: s.names() for side, s in split.items()} == {side: s.names() for side, s in again.items()}
        assert split['train'].names() != other['train'].names()
        assert [len(members) for members in split['train'].by_class.values()] == [3, 3, 3]
        assert [len(members) for members in split['test'].by_class.values()] == [1, 1, 1]


COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2001, Someone
License: GPL-2+
 Long text
 .
 goes on.

Files: nature/Dune.jpg
       nature/Wood.jpg
Copyright: 2007, A. Author
           2008, B. Author
License: CC-BY-4.0
"""


class TestPackages:
    @pytest.fixture
    def root(self, tmp_path):
        """Two packages unpacked into one root."""
        for name in ('mate-backgrounds', 'tuxpaint-stamps-default'):
            (tmp_path / 'usr/share/doc' / name).mkdir(parents=True)
            (tmp_path / 'usr/share/doc' / name / 'copyright').write_text(COPYRIGHT)
        return tmp_path

    def test_licenses(self, tmp_path):
        (tmp_path / 'copyright').write_text(COPYRIGHT)
        entries = read_licenses(tmp_path / 'copyright')
        assert find_license(entries, 'nature/Wood.jpg') == ('CC-BY-4.0', '2007, A. Author, 2008, B. Author')
        assert find_license(entries, 'else.jpg') == ('GPL-2+', '2001, Someone')
        assert find_license(entries[1:], 'else.jpg') is None

    def test_find_cutouts(self, root):
        stamps = root / packages.STAMPS
        for name in (
            'animals/birds/owl.png',
            'animals/birds/owl_mirror.png',
            'animals/birds/cartoon/duck.png',
            'animals/birds/crow.svg',
            'household/tools/saw.png',
            'household/lamp.png',
            'symbols/plus.png',
            'vehicles/emergency/sedan_police.png',
        ):
            (stamps / name).parent.mkdir(parents=True, exist_ok=True)
            (stamps / name).touch()
        (stamps / 'household/tools/saw.dat').write_text('scale 50%\nnomirror\n')
        (stamps / 'household/lamp.dat').write_text('noflip\n')
        found = {source.path.name: (source.label, source.mirror) for source in find_cutouts(root)}
        assert found == {
            'owl.png': ('birds', False),
            'owl_mirror.png': ('birds', True),
            'saw.png': ('tools', False),
            'lamp.png': ('distractor', True),
        }

    def test_find_photos_takes_the_largest_version(self, root):
        nature = root / 'usr/share/backgrounds/mate/nature'
        (nature / 'Lake').mkdir(parents=True)
        (nature / 'Dune.jpg').write_bytes(b'1')
        (nature / 'Lake/small.jpg').write_bytes(b'1')
        (nature / 'Lake/tall.jpg').write_bytes(b'123')
        (nature / 'Lake/alias.jpg').symlink_to('tall.jpg')
        found = {source.name: (source.path.name, source.license) for source in find_photos(root)}
        assert found == {'Dune': ('Dune.jpg', 'CC-BY-4.0'), 'Lake': ('tall.jpg', 'GPL-2+')}

    def test_nothing_there(self, tmp_path):
        assert find_cutouts(tmp_path) == find_photos(tmp_path) == []


class TestFetching:
    """With stand-ins for apt-get and dpkg-deb, so that no network is needed."""

    @pytest.fixture
    def programs(self, tmp_path, monkeypatch):
        folder = tmp_path / 'programs'
        folder.mkdir()
        # The command and its last argument follow the options.
        record = 'while [ "$1" = -o ]; do shift 2; done; echo "$@" >> "$CALLS"'
        fail = '[ -z "$FAILURE" ] || { echo "$FAILURE" >&2; exit 100; }'
        unpack = 'd="$3/usr/share/doc/$(basename "$2" _1_all.deb)"; mkdir -p "$d"; touch "$d/copyright"'
        for name, script in (
            ('apt-get', f'{record}; {fail}; [ "$1" = update ] || touch "$2_1_all.deb"'),
            ('dpkg-deb', unpack),
        ):
            (folder / name).write_text(f'#!/bin/sh\n{script}\n')
            (folder / name).chmod(0o755)
        monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')
        monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))
        monkeypatch.setenv('FAILURE', '')
        monkeypatch.setattr(packages, 'APT_LISTS', tmp_path)
        (tmp_path / 'main_Packages').touch()
        return tmp_path

    def test_a_package_is_fetched_once(self, programs):
        for _ in range(2):
            fetch_packages(programs / 'cache', ['one', 'two'])
        assert (programs / 'calls').read_text().splitlines() == ['download one', 'download two']
        assert sorted(path.name for path in (programs / 'cache').iterdir()) == ['one', 'two']

    def test_a_machine_without_package_lists_gets_some(self, programs, monkeypatch):
        monkeypatch.setattr(packages, 'APT_LISTS', Path('/nonexistent'))
        fetch_packages(programs / 'cache', ['one'])
        assert (programs / 'calls').read_text().splitlines() == ['update', 'download one']
        assert (programs / 'cache/one').is_dir()

    def test_an_unknown_package_is_skipped(self, programs, monkeypatch):
        monkeypatch.setenv('FAILURE', 'E: Unable to locate package one')
        with pytest.warns(UserWarning, match='do not contain one'):
            fetch_packages(programs / 'cache', ['one'])
        assert not list((programs / 'cache').iterdir())

    def test_failures_say_what_to_do(self, programs, monkeypatch):
        monkeypatch.setenv('FAILURE', 'E: Could not resolve host')
        with pytest.raises(PackageError, match='resolve host[^$]*Check the network'):
            fetch_packages(programs / 'cache', ['one'])
        monkeypatch.setattr(packages, 'APT_LISTS', Path('/nonexistent'))
        with pytest.raises(PackageError, match='update failed: E: Could not resolve host'):
            fetch_packages(programs / 'own', ['one'])
        monkeypatch.setenv('PATH', '/nonexistent')
        with pytest.raises(PackageError, match='apt-get is not installed.*--assets'):
            fetch_packages(programs / 'cache', ['one'])
        assert not list((programs / 'cache').iterdir())
