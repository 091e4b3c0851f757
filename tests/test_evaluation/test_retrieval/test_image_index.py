import os
import shutil

import numpy as np
import pytest
import torch
from mmpretrain.datasets.transforms import processing
from PIL import Image
from testing.image_encoders import small_encoder
from testing.sample_images import smooth_image, write_images
from torch.nn.functional import cosine_similarity

from mm_sop.evaluation.retrieval import image_index as image_index
from mm_sop.evaluation.retrieval.image_index import UNREADABLE, ImageFile, ImageIndex, find_store


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / 'images', 8)
    return tmp_path / 'images'


@pytest.fixture
def encoder():
    return small_encoder()


def updated(folder, encoder, **options):
    index = ImageIndex(folder, folder.parent / 'store')
    return index, index.update(encoder, **options)


def counts(update):
    return update.images, update.encoded, update.removed, update.unreadable


def test_features_are_those_of_the_encoder_in_the_order_of_the_files(folder, encoder):
    index, update = updated(folder, encoder, batch_size=3, block_size=4)
    assert counts(update) == (8, 8, 0, 0)
    for number, file in enumerate(index.files):
        assert index.path(number) == folder / file.path
        direct = encoder(Image.open(folder / file.path))[0][0]
        assert index.features[number].norm().item() == pytest.approx(1)
        # PNG files are decoded alike; decoders of JPEG may differ by a gray level.
        assert cosine_similarity(index.features[number], direct, dim=0).item() == pytest.approx(1, abs=1e-3)
    assert torch.equal(ImageIndex(folder, index.store).features, index.features)


def test_only_new_and_changed_images_are_encoded(folder, encoder):
    index, _ = updated(folder, encoder)
    before = {file.path: index.features[number].clone() for number, file in enumerate(index.files)}
    assert counts(index.update(encoder)) == (8, 0, 0, 0)
    paths = [index.path(number) for number in range(8)]
    smooth_image(seed=77).save(paths[0])
    paths[1].unlink()
    moved = folder / 'moved.png'
    os.replace(paths[2], moved)
    shutil.copy(paths[3], folder / 'copy.png')
    smooth_image(seed=78).save(folder / 'new.png')
    assert counts(index.update(encoder)) == (9, 2, 3, 0)
    after = {file.path: index.features[number] for number, file in enumerate(index.files)}
    assert torch.equal(after['moved.png'], before[str(paths[2].relative_to(folder))])
    assert torch.equal(after['copy.png'], before[str(paths[3].relative_to(folder))])
    assert not torch.allclose(after[str(paths[0].relative_to(folder))], before[str(paths[0].relative_to(folder))])
    fresh = ImageIndex(folder, folder.parent / 'other')
    fresh.update(encoder)
    assert [file.path for file in fresh.files] == [file.path for file in index.files]
    assert torch.allclose(fresh.features, index.features, atol=1e-6)
    assert len(list(index.store.glob('features-*'))) == 1 and not list(index.store.glob('block-*'))


def test_interrupted_updates_are_resumed(folder, encoder, monkeypatch):
    index = ImageIndex(folder, folder.parent / 'store')
    encode, calls = ImageIndex._encode, []

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, *args)

    monkeypatch.setattr(ImageIndex, '_encode', interrupted)
    with pytest.raises(KeyboardInterrupt):
        index.update(encoder, block_size=3)
    assert len(ImageIndex(folder, index.store)) == 0
    index, update = updated(folder, encoder)
    assert counts(update) == (8, 2, 0, 0)


def test_a_full_disk_is_an_error_and_the_update_goes_on_later(folder, encoder, full_disk):
    index = ImageIndex(folder, folder.parent / 'store')
    with full_disk('features-'), pytest.raises(OSError, match='No space left.*bytes are needed'):
        index.update(encoder)
    assert len(ImageIndex(folder, index.store)) == 0
    assert [path.name[:6] for path in index.store.iterdir()] == ['block-']
    assert counts(updated(folder, encoder)[1]) == (8, 0, 0, 0)


def test_broken_files_are_listed_and_not_tried_again(folder, encoder, monkeypatch):
    (folder / 'broken\n.png').write_bytes(b'nothing')
    (folder / 'empty.jpg').touch()
    index, update = updated(folder, encoder)
    assert counts(update) == (8, 8, 0, 2)
    lines = (index.store / UNREADABLE).read_text().splitlines()
    assert [line.split(':')[0] for line in lines] == [r"'broken\n.png'", "'empty.jpg'"] and 'empty' in lines[1]
    monkeypatch.setattr(image_index, 'hash_file', None)
    assert counts(index.update(encoder)) == (8, 0, 0, 2)
    monkeypatch.undo()
    smooth_image(seed=99).save(folder / 'empty.jpg')
    assert counts(index.update(encoder)) == (9, 1, 1, 1)


def test_files_that_cannot_be_opened_are_tried_again(folder, encoder, monkeypatch):
    def refuse(path):
        if path.name.startswith('000003'):
            raise PermissionError(13, 'Permission denied')
        return real(path)

    real = image_index.hash_file
    monkeypatch.setattr(image_index, 'hash_file', refuse)
    index, update = updated(folder, encoder)
    assert counts(update) == (7, 7, 0, 1)
    assert 'Permission denied' in (index.store / UNREADABLE).read_text()
    monkeypatch.undo()
    assert counts(index.update(encoder)) == (8, 1, 0, 0)


def test_a_lost_feature_file_is_made_again(folder, encoder):
    index, _ = updated(folder, encoder)
    next(index.store.glob('features-*')).unlink()
    assert counts(updated(folder, encoder)[1]) == (8, 8, 0, 0)


def test_bad_folders_and_networks_say_what_is_wrong(folder, encoder):
    with torch.no_grad():
        encoder.network.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match='diverged'):
        updated(folder, encoder)
    broken = folder.parent / 'all_broken'
    broken.mkdir()
    (broken / 'a.png').write_bytes(b'x')
    with pytest.raises(ValueError, match=r'none of the 1 images below .*all_broken can be read; the first: a.png: '):
        updated(broken, small_encoder())
    with pytest.raises(FileNotFoundError, match='nowhere'):
        updated(folder.parent / 'nowhere', encoder)


def test_search_agrees_with_sorting_and_breaks_ties_by_number(tmp_path):
    index = ImageIndex(tmp_path, tmp_path)
    rows = torch.nn.functional.normalize(
        torch.randint(-2, 3, (300, 4), generator=torch.Generator().manual_seed(0)) + 0.5
    )
    index.features, index.files = rows, [ImageFile(str(number), 1, 1) for number in range(300)]
    query = 3 * rows[17]
    cosines, numbers = index.search(query, 40)
    exact = (rows.double() @ rows[17].double()).numpy()
    assert np.allclose(cosines, np.sort(exact)[::-1][:40])
    assert np.allclose(exact[numbers], cosines)
    for first, second in zip(range(39), range(1, 40), strict=True):
        assert cosines[first] > cosines[second] or numbers[first] < numbers[second]
    assert len(index.search(query, 1000)[1]) == 300


def test_each_encoder_and_folder_has_its_own_store(tmp_path):
    stores = {
        find_store('root', folder, small_encoder(size))
        for folder in (tmp_path / 'a', tmp_path / 'b')
        for size in (16, 32)
    }
    assert len(stores) == 4 and all(store.parent.name == 'root' for store in stores)
    assert find_store('root', tmp_path / 'a', small_encoder(16)) in stores


@pytest.mark.parametrize('size', [(60_000, 1), (1, 60_000)])
def test_strips_are_not_enlarged_as_a_whole(folder, encoder, size, monkeypatch):
    enlarged, resize = [], processing.mmcv.imresize
    monkeypatch.setattr(
        processing.mmcv, 'imresize', lambda image, scale, **kw: enlarged.append(scale) or resize(image, scale, **kw)
    )
    Image.new('RGB', size, (200, 30, 40)).save(folder / 'strip.png')
    assert counts(updated(folder, encoder)[1]) == (9, 9, 0, 0)
    assert max(map(max, enlarged)) == 8 * encoder.transform.resize_edge


def test_names_of_any_bytes_are_indexed(folder, encoder):
    good, bad = (os.fsdecode(name) for name in (b'good\xe9.png', b'bad\xe9\n.jpg'))
    smooth_image(seed=5).save(folder / good)
    (folder / bad).write_bytes(b'no image')
    index, update = updated(folder, encoder)
    assert counts(update) == (9, 9, 0, 1)
    again = ImageIndex(folder, index.store)
    assert good in [file.path for file in again.files] and [file.path for file in again.unreadable] == [bad]
    assert counts(again.update(encoder)) == (9, 0, 0, 1)
