import io
import itertools
import json
import multiprocessing
import os
import re
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from testing.distributed import run_distributed
from testing.sample_images import write_images

from mm_sop.datasets import SampleKey, SeededDataset, ShardedImages, UnlabeledImages, shard_writer
from mm_sop.datasets.samplers import ResumableSampler
from mm_sop.datasets.semantic_pairs import describe_data
from mm_sop.datasets.shard_writer import LEFT_OUT, write_shards
from mm_sop.datasets.shards import TarMemberBackend, find_shards, holds_shards
from mm_sop.datasets.transforms.loading import UnreadableImageError
from mm_sop.utils.failures import LaunchError, UserError

LOAD = [dict(type='mmpretrain.LoadImage')]
RANDOM = [*LOAD, dict(type='mmpretrain.FastRandomResizedCrop', scale=16), dict(type='mmpretrain.PackInputs')]


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('loose')
    write_images(folder, 40, size=(24, 20))
    return folder


@pytest.fixture(scope='module')
def shards(images, tmp_path_factory):
    out = tmp_path_factory.mktemp('packed') / 'shards'
    assert write_shards(images, out, size=20_000)[:3] == (6, 40, 0)
    return out


def write_tar(path, members, **settings):
    with tarfile.open(path, 'w', **settings) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def contents(dataset):
    return [TarMemberBackend().get(dataset.get_data_info(index)['img_path']) for index in range(len(dataset))]


def names(dataset):
    return [path.split('+', 1)[1].split('/', 1)[1] for path in dataset.paths]


def files_of(folder):
    return [Path(path).read_bytes() for path in UnlabeledImages(folder).paths]


def test_images_of_shards_are_those_of_the_folder(images, shards):
    loose, packed = UnlabeledImages(images, LOAD), ShardedImages(shards, LOAD)
    assert contents(packed) == files_of(images)
    assert all(np.array_equal(loose[index]['img'], packed[index]['img']) for index in range(40))
    assert packed.get_data_info(-1)['sample_idx'] == 39
    assert contents(packed.get_subset([7, 3])) == [contents(packed)[index] for index in (7, 3)]
    assert contents(ShardedImages(shards, limit=4)) == contents(packed)[::10]
    assert describe_data(packed)['num_images'] == 40


@pytest.mark.parametrize('format', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_others(tmp_path, format, capsys):
    long = 'l' * 90 + '/' + 'x' * (90 if format == tarfile.USTAR_FORMAT else 160)
    members = [
        ('./b/2.JPG', b'two'),
        ('b/2.json', b'{}'),
        ('b.c/1.png', b'one'),
        ('b.c/1.seg.png', b'a label map'),
        ('a/_0.txt', b'text'),
        ('b/._2.jpg', b'of macOS'),
        (f'{long}.webp', b'long'),
        ('ünï/é.jpg', b''),
    ]
    write_tar(tmp_path / 'x.tar', members, format=format)
    with tarfile.open(tmp_path / 'x.tar', 'a', format=format) as archive:
        link = tarfile.TarInfo('link.jpg')
        link.type, link.linkname = tarfile.SYMTYPE, 'b/2.JPG'
        archive.addfile(link)
    capsys.readouterr()
    dataset = ShardedImages(tmp_path)
    (found,) = re.findall(r'left out (.*?)\. Only', capsys.readouterr().out)
    assert set(found.split(', ')) == {'1 x .seg.png', '1 x .txt', '1 x links or special files'}
    assert names(dataset) == ['b/2.JPG', 'b.c/1.png', f'{long}.webp', 'ünï/é.jpg']
    assert contents(dataset) == [b'two', b'one', b'long', b'']
    assert names(ShardedImages(tmp_path, extensions=['.seg.png'])) == ['b.c/1.seg.png']


def test_labels(tmp_path):
    members = []
    for number in range(4):
        side = [(f'{number}.cls', str(number % 2).encode()), (f'{number}.json', json.dumps(dict(kind=number)).encode())]
        members += [side[0], (f'{number}.jpg', b'image'), side[1]]
    write_tar(tmp_path / 'x.tar', members)
    for label, expected in (('cls', [0, 1, 0, 1]), ('json:kind', [0, 1, 2, 3])):
        for _ in range(2):  # scanned, and from the index
            dataset = ShardedImages(tmp_path, label=label, metainfo=dict(classes=['a', 'b', 'c', 'd']))
            assert [dataset.get_data_info(index)['gt_label'] for index in range(4)] == expected
        assert dataset.get_subset([3, 0]).get_data_info(0)['gt_label'] == expected[3]
    with pytest.raises(UserError, match=r'x.tar \(0.json has no label name: KeyError'):
        ShardedImages(tmp_path, label='json:name')
    with pytest.raises(ValueError, match="expected 'cls' or"):
        ShardedImages(tmp_path, label='txt')


def test_names_patterns_and_folders(shards, tmp_path):
    every = sorted(shards.glob('*.tar'))
    assert find_shards([shards]) == find_shards([f'{shards}/shard-{{000000..000005}}.tar']) == every
    assert find_shards([f'{shards}/shard-00000{{4,1}}.tar', every[0]]) == [every[4], every[1], every[0]]
    assert find_shards([f'{shards}/*-{{000000..000001}}.tar']) == every[:2]
    assert find_shards([f'{shards}/*.tar']) == every
    assert holds_shards(shards)
    assert holds_shards('some/x-{0..3}.tar')
    assert not holds_shards(tmp_path)
    with pytest.raises(FileNotFoundError, match='there is no .*shard-000006.tar'):
        find_shards([f'{shards}/shard-{{000004..000009}}.tar'])
    with pytest.raises(UserError, match='read from file systems only'):
        find_shards(['s3://bucket/shard-000000.tar'])
    with pytest.raises(UserError, match='no shards below'):
        find_shards([tmp_path])


def test_damaged_shards_are_named(shards, tmp_path):
    whole = (shards / 'shard-000000.tar').read_bytes()
    (tmp_path / 'a.tar').write_bytes(whole)
    with tarfile.open(tmp_path / 'a.tar') as archive:
        third = archive.getmembers()[2]
    damages = {
        'inside.tar': whole[: third.offset_data + 100],
        'between.tar': whole[: third.offset],
        'header.tar': whole[: third.offset] + b'?' * 512 + whole[third.offset + 512 :],
        'first.tar': b'?' * 1024,
        'empty.tar': b'',
        'joined.tar': whole + whole,
    }
    for name, content in damages.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match='1 of 2 shards cannot be used') as info:
            ShardedImages([tmp_path / 'a.tar', tmp_path / name])
        assert str(tmp_path / name) in str(info.value)
    for name in ('x.tar.gz', 'x.tar'):
        folder = tmp_path / f'compressed {name}'
        folder.mkdir()
        write_tar(folder / 'plain', [('a.jpg', b'image')])
        with tarfile.open(folder / name, 'w:gz') as archive:
            archive.add(folder / 'plain', 'a.jpg')
        with pytest.raises(UserError, match='compressed archives cannot be read at random'):
            ShardedImages(folder)


def test_index_follows_the_archives(tmp_path):
    shard = write_tar(tmp_path / 'x.tar', [('a.jpg', b'a'), ('b.jpg', b'b')])
    first = ShardedImages(tmp_path)
    (index,) = tmp_path.glob('.*.index')
    content = index.read_bytes()
    assert contents(ShardedImages(tmp_path)) == contents(first) == [b'a', b'b']
    assert index.read_bytes() == content
    write_tar(shard, [('b.jpg', b'b'), ('a.jpg', b'a')])  # of the same size
    os.utime(shard, ns=(0, 0))
    assert names(ShardedImages(tmp_path)) == ['b.jpg', 'a.jpg']
    index.write_bytes(content[:-1])
    assert names(ShardedImages(tmp_path)) == ['b.jpg', 'a.jpg']
    named = ShardedImages(tmp_path, index_file=tmp_path / 'named')
    assert (tmp_path / 'named').exists()
    assert names(named) == ['b.jpg', 'a.jpg']


def test_shortened_shard_is_an_unreadable_image(shards, tmp_path):
    copy = tmp_path / 'x.tar'
    copy.write_bytes((shards / 'shard-000001.tar').read_bytes())
    dataset = ShardedImages(copy, LOAD)
    os.truncate(copy, 600)
    with pytest.raises(UnreadableImageError, match='has become shorter'):
        dataset[5]


def test_few_descriptors_are_open(tmp_path):
    for number in range(150):
        write_tar(tmp_path / f'{number:03d}.tar', [('a.jpg', str(number).encode())])
    dataset, before = ShardedImages(tmp_path), len(os.listdir('/proc/self/fd'))
    assert contents(dataset) == [str(number).encode() for number in range(150)]
    assert len(os.listdir('/proc/self/fd')) <= before + 64


def load_epoch(dataset, skip=0, workers=0, **sampler):
    """Batches of the second epoch."""
    loader = Runner.build_dataloader(
        dict(
            batch_size=4,
            num_workers=workers,
            drop_last=True,
            dataset=SeededDataset(dataset),
            sampler=dict(type='mmpretrain.ResumableSampler', **sampler),
            collate_fn=dict(type='pseudo_collate'),
        ),
        seed=3,
    )
    loader.sampler.set_epoch(1)
    loader.sampler.skip(skip)
    return [torch.stack(batch['inputs']) for batch in loader]


def assert_same(first, second):
    assert len(first) == len(second)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_batches_are_those_of_the_folder(images, shards):
    assert_same(load_epoch(UnlabeledImages(images, RANDOM)), load_epoch(ShardedImages(shards, RANDOM)))


@pytest.mark.parametrize('window', [None, 2])
def test_batches_do_not_depend_on_workers_and_resumption(shards, window):
    dataset = ShardedImages(shards, RANDOM)
    straight = load_epoch(dataset, window=window)
    assert len(straight) == 10
    assert_same(load_epoch(dataset, workers=3, window=window), straight)
    assert_same(load_epoch(dataset, skip=12, workers=1, window=window), straight[3:])


def ranks_epoch(rank, world_size, shards):
    sampler = ResumableSampler(SeededDataset(ShardedImages(shards, RANDOM)), seed=3, window=2)
    sampler.set_epoch(1)
    return [key.index for key in sampler]


def test_two_ranks_share_the_order_of_one(shards):
    first, second = run_distributed(ranks_epoch, str(shards))
    assert [index for pair in zip(first, second, strict=True) for index in pair] == ranks_epoch(0, 1, shards)


def test_windows_of_shards(shards):
    dataset = SeededDataset(ShardedImages(shards, RANDOM))
    sampler, ids, orders = ResumableSampler(dataset, seed=0, window=2), dataset.shard_ids, []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert sorted(keys) == [SampleKey(epoch, index) for index in range(40)]
        found = ids[[key.index for key in keys]]
        # Of every window both shards are read, mixed, before the next one begins.
        windows = [list(dict.fromkeys(found.tolist()))[start : start + 2] for start in (0, 2, 4)]
        expected = np.concatenate([np.flatnonzero(np.isin(found, window)) for window in windows])
        assert expected.tolist() == list(range(40))
        assert np.abs(np.diff(found)).astype(bool).sum() > 10
        orders.append(tuple(key.index for key in keys))
    assert len(set(orders)) == 4
    subset = SeededDataset(ShardedImages(shards, indices=[39, 0, 38, 1]))
    keys = [key.index for key in ResumableSampler(subset, seed=0, window=1)]
    assert {frozenset(keys[:2]), frozenset(keys[2:])} == {frozenset({0, 2}), frozenset({1, 3})}


def test_windows_need_shards(images, shards):
    with pytest.raises(TypeError, match='has no shards, use ShardedImages'):
        ResumableSampler(SeededDataset(UnlabeledImages(images)), window=2)
    dataset = SeededDataset(ShardedImages(shards))
    for settings in (dict(window=0), dict(window=1, shuffle=False)):
        with pytest.raises(ValueError, match='at least 1, with shuffle=True'):
            ResumableSampler(dataset, **settings)


def test_names_in_written_shards(tmp_path):
    files = ['a.jpg', 'a.k.jpg', 'a.png', 'a.png.png', 'b%2E.png', 'b..png', 'x.y/c.webp', 'Z.JPG']
    for name in files:
        path = tmp_path / 'in' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / 'in/notes.txt').touch()
    write_shards(tmp_path / 'in', tmp_path / 'out')
    dataset = ShardedImages(tmp_path / 'out')
    assert contents(dataset) == files_of(tmp_path / 'in')
    assert len(set(names(dataset))) == len(files)
    keys = [name.rpartition('/')[2].partition('.')[0] for name in names(dataset)]
    assert all(first != second for first, second in itertools.pairwise(keys))
    with pytest.raises(FileExistsError, match='exists already'):
        write_shards(tmp_path / 'in', tmp_path / 'out')


def test_unreadable_files_are_listed(tmp_path, monkeypatch):
    write_images(tmp_path / 'in', 4, nested=False)
    monkeypatch.setattr('mm_sop.datasets.shard_writer.open_regular', refuse_second)
    assert write_shards(tmp_path / 'in', tmp_path / 'out') == (1, 3, 0, 1)
    assert (tmp_path / 'out' / LEFT_OUT).read_text() == f'{tmp_path}/in/000001.png: Permission denied\n'


def refuse_second(path):
    if path.endswith('000001.png'):
        raise PermissionError(13, 'Permission denied', path)
    return open(path, 'rb')


def write_slowly(images, out):
    def open_slowly(path):
        time.sleep(0.03)
        return open(path, 'rb')

    shard_writer.open_regular = open_slowly
    write_shards(images, out, size=20_000, workers=1)


def test_killed_writer_resumes(images, shards, tmp_path):
    out, unfinished = tmp_path / 'out', tmp_path / 'out.unfinished'
    process = multiprocessing.get_context('fork').Process(target=write_slowly, args=(images, out))
    process.start()
    deadline = time.monotonic() + 120
    while len(list(unfinished.glob('shard-*.tar'))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(LaunchError, match='in use by process'):
        write_shards(images, out, size=20_000)
    process.kill()
    process.join()
    assert not out.exists()
    with pytest.raises(UserError, match='is not complete'):
        ShardedImages(unfinished)
    kept = len(list(unfinished.glob('shard-*.tar')))
    assert 2 <= kept < 6
    (unfinished / 'shard-000001.tar').write_bytes(b'damaged')
    (unfinished / 'shard-000099.tar').write_bytes(b'of another size')
    assert write_shards(images, out, size=20_000) == (6, 40, kept - 1, 0)
    assert sorted(os.listdir(out)) == [f'shard-{number:06d}.tar' for number in range(6)]
    for path in out.iterdir():
        assert path.read_bytes() == (shards / path.name).read_bytes()
