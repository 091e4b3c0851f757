import json
import os
import pickle
import re
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mmpretrain.registry import DATASETS
from testing.sample_images import smooth_image, write_images
from testing.shared_paths import SharedPaths
from torch.utils.data import DataLoader

from mm_sop.datasets.image_files import EXTENSIONS, list_images
from mm_sop.datasets.path_list import PathList
from mm_sop.datasets.unlabeled import UnlabeledImages


def build(data_root, **settings):
    return DATASETS.build(dict(type='UnlabeledImages', data_root=data_root, **settings))


def paths(dataset):
    return [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]


def test_lists_files_then_subfolders_in_sorted_order(tree):
    expected = ['a.JPG', 'z.png', 'Sub/e.webp', 'folder.jpg/inside.png', 'sub/b.jpeg', 'sub/deep/c.png']
    assert list_images(tree) == [str(tree / name) for name in expected]
    assert paths(build(str(tree))) == [str(tree / name) for name in expected]


def test_file_names_in_any_encoding(tmp_path):
    names = [b'\xff\xfe.png', 'ünï.png'.encode()]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    dataset = build(str(tmp_path), index_file=str(tmp_path / 'index.txt'))
    assert {os.fsencode(os.path.basename(path)) for path in paths(dataset)} == set(names)
    assert paths(build(str(tmp_path), index_file=str(tmp_path / 'index.txt'))) == paths(dataset)


def test_samples(images):
    dataset = build(str(images), pipeline=[dict(type='LoadImage')])
    assert len(dataset) == 12
    assert dataset[3]['img'].shape == (48, 64, 3)
    assert dataset[3]['sample_idx'] == 3
    assert dataset.get_data_info(-1) == dict(img_path=paths(dataset)[11], sample_idx=11)
    assert dataset.metainfo['dataset_type'] == 'unlabeled_images'
    assert build(str(images), metainfo=dict(source='drawn')).metainfo['source'] == 'drawn'
    for index in (12, -13):
        with pytest.raises(IndexError):
            dataset.get_data_info(index)


def test_several_folders(images):
    single = paths(build(str(images)))
    assert sorted(paths(build([str(images / 'b'), str(images / 'a')]))) == sorted(single)
    assert paths(build([images / 'b', images / 'a']))[0].startswith(str(images / 'b'))


def test_limit_indices_and_subsets(images):
    every = paths(build(str(images)))
    assert paths(build(str(images), limit=4)) == every[::3]
    assert paths(build(str(images), limit=12)) == every
    assert paths(build(str(images), limit=5)) == [every[i] for i in (0, 2, 4, 7, 9)]
    assert paths(build(str(images), indices=2)) == every[:2]
    assert paths(build(str(images), limit=4, indices=[3, 0])) == [every[9], every[0]]
    assert paths(build(str(images), indices=np.array([-1, 3]))) == [every[11], every[3]]
    dataset = build(str(images))
    for indices, expected in (([5, 1], [every[5], every[1]]), (3, every[:3]), (-2, every[-2:]), ([], [])):
        assert paths(dataset.get_subset(indices)) == expected
    assert paths(dataset) == list(dataset.paths) == every
    with pytest.raises(IndexError):
        build(str(images), indices=[12])
    with pytest.raises(TypeError, match='indices of images are an integer or a list of integers'):
        build(str(images), indices=[0.5])
    for limit in (0, 13):
        with pytest.raises(ValueError, match=f'limit={limit}: expected 1 ... 12'):
            build(str(images), limit=limit)


def test_index_file_is_used_until_settings_change(tmp_path):
    write_images(tmp_path / 'data', 4, nested=False)
    settings = dict(data_root=str(tmp_path / 'data'), index_file=str(tmp_path / 'cache/index.txt'))
    listed = paths(build(**settings))
    smooth_image().save(tmp_path / 'data/new.png')
    assert paths(build(**settings)) == listed
    assert set(os.listdir(tmp_path / 'cache')) == {'index.txt', '.index.txt.lock'}
    assert len(build(**settings, extensions=['.PNG'])) == 3
    assert len(build(**settings)) == 5


def test_processes_that_start_together_list_once(tmp_path, monkeypatch):
    write_images(tmp_path / 'data', 4, nested=False)
    settings = dict(data_root=str(tmp_path / 'data'), index_file=str(tmp_path / 'index'))
    listed, list_once = [], UnlabeledImages.list_paths

    def list_slowly(dataset):
        listed.append(dataset)
        time.sleep(0.2)
        return list_once(dataset)

    monkeypatch.setattr(UnlabeledImages, 'list_paths', list_slowly)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: paths(build(**settings)), range(3)))
    assert found == [paths(build(**settings))] * 3
    assert len(listed) == 1


def test_torn_index_file_is_replaced(tmp_path):
    write_images(tmp_path / 'data', 4, nested=False)
    index = tmp_path / 'index.txt'
    settings = dict(data_root=str(tmp_path / 'data'), index_file=str(index))
    listed = paths(build(**settings))
    index.write_bytes(index.read_bytes()[:-3])
    assert paths(build(**settings)) == listed


@pytest.mark.parametrize('content', [b'my notes\n', b'\x89PNG\r\n\x1a\n', b'{"folders": 3}\n', b'{"format": "mm_'])
def test_other_files_are_not_overwritten_by_an_index(tmp_path, content):
    write_images(tmp_path / 'data', 2, nested=False)
    (tmp_path / 'other').write_bytes(content)
    with pytest.raises(ValueError, match='is not an index of images, and is not overwritten'):
        build(str(tmp_path / 'data'), index_file=str(tmp_path / 'other'))
    assert (tmp_path / 'other').read_bytes() == content


def test_text_index_of_earlier_versions(tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/real.png').touch()
    index, root = tmp_path / 'index.txt', str(tmp_path / 'data')
    header = json.dumps(dict(folders=[root], extensions=EXTENSIONS))
    listed = [f'{root}/{name}' for name in ('a.png', 'sub/ünï.png', os.fsdecode(b'\xff.png'))]
    for lines in ([header, *listed, ''], [header, *listed[:2], '']):
        index.write_bytes(os.fsencode('\n'.join(lines)))
        for _ in range(2):  # the second time it has been converted
            assert paths(build(root, index_file=str(index))) == lines[1:-1]
    for text in (f'{header}\n{root}/a.p', header.replace('.png', '.none') + f'\n{root}/a.png\n'):
        index.write_text(text)  # half a file, and one of other extensions
        assert paths(build(root, index_file=str(index))) == [f'{root}/real.png']


def test_line_breaks_in_file_names(tmp_path):
    (tmp_path / 'a\nb.png').touch()
    for _ in range(2):
        assert paths(build(str(tmp_path), index_file=str(tmp_path / 'index'))) == [str(tmp_path / 'a\nb.png')]


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'{tmp_path}/none does not exist: set `data_root`'):
        build(str(tmp_path / 'none'))
    (tmp_path / 'file').touch()
    with pytest.raises(FileNotFoundError, match='is a file'):
        build(str(tmp_path / 'file'))
    with pytest.raises(ValueError, match='empty list'):
        build([])


def test_folders_without_images(tmp_path):
    with pytest.raises(ValueError, match='no files at all'):
        build(str(tmp_path))
    for name in ('a.heic', 'b.HEIC', 'c.txt', 'README'):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=re.escape('found 2 x .heic, 1 x no extension, 1 x .txt')) as info:
        build(str(tmp_path), extensions=['.jpg', '.png'])
    assert 'looked for .jpg .png' in str(info.value)
    assert str(tmp_path) in str(info.value)
    assert len(build(str(tmp_path), extensions=['.heic'])) == 2


def test_is_listed_only_when_needed(tmp_path):
    dataset = build(str(tmp_path / 'later'), lazy_init=True)
    write_images(tmp_path / 'later', 2)
    dataset.full_init()
    assert len(dataset) == 2


def test_large_folders_are_sorted_like_small_ones(tmp_path, monkeypatch):
    # Code points order these names in another way than their bytes.
    names = ['b', 'a', 'é', '\ue000', '😀', 'a%', 'B', os.fsdecode(b'\xff'), os.fsdecode(b'\x80\xc3'), 'aa', 'ab\x7f']
    for name in names:
        (tmp_path / f'{name}.png').touch()
    expected = [f'{tmp_path}/{name}' for name in sorted(f'{name}.png' for name in names)]
    assert list_images(tmp_path) == expected
    monkeypatch.setattr('mm_sop.datasets.image_files._MANY', 3)
    assert list_images(tmp_path) == expected
    assert paths(build(str(tmp_path))) == expected


def memory_of(paths):
    """Bytes that Python allocates at most while it collects paths."""
    tracemalloc.start()
    PathList.collect(paths)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_paths_are_held_compactly():
    count, path = 20_000, '/data/images/folder/{:09d}.jpg'
    assert memory_of(path.format(number) for number in range(count)) < 1.5 * count * (len(path.format(0)) + 8)


@pytest.mark.parametrize('method', ['pickle', 'fork', 'spawn'])
def test_processes_share_the_paths(images, tmp_path, method):
    listed, indexed = build(str(images)), build(str(images), index_file=str(tmp_path / 'index'))
    if method == 'pickle':
        assert paths(pickle.loads(pickle.dumps(listed))) == paths(pickle.loads(pickle.dumps(indexed))) == paths(listed)
        return
    loader = DataLoader(SharedPaths([listed, indexed]), num_workers=1, multiprocessing_context=method, collate_fn=list)
    (((found, is_mapped),), ((found_indexed, is_index_mapped),)) = list(loader)
    assert found == found_indexed == paths(listed)
    assert is_mapped == (method == 'spawn')
    assert is_index_mapped
