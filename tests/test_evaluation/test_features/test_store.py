"""Features on the disk."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from testing.distributed import run_distributed
from testing.evaluation_encoders import make_context, make_encoder, write_classes

from mm_sop.datasets import LabeledImages
from mm_sop.evaluation.features.extraction import READOUTS, distinct_readouts
from mm_sop.evaluation.features.identity import describe_images
from mm_sop.evaluation.features.store import ArrayStore, FeatureCache
from mm_sop.evaluation.retrieval.descriptors import Descriptor, describe


class CountingEncoder:
    """Passes on to an encoder, counts its batches and stops at one of them."""

    def __init__(self, encoder, stop_at=None):
        self.encoder, self.calls, self.stop_at = encoder, 0, stop_at
        self.identity, self.network, self.parameters = encoder.identity, encoder.network, encoder.parameters

    def read(self, batch, num_blocks=1):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return self.encoder.read(batch, num_blocks)


@pytest.fixture
def folder(tmp_path):
    write_classes(tmp_path / 'images', 6)
    return tmp_path / 'images'


@pytest.fixture
def context(folder, tmp_path):
    return make_context(folder, tmp_path / 'work', 'transformer')


def read_directly(context, dataset, num_blocks=1):
    images = torch.stack([dataset[row]['inputs'] for row in range(len(dataset))])
    return context.encoder.read(dict(inputs=images, data_samples=[]), num_blocks)


def test_readouts_are_those_of_the_network(context, folder):
    dataset = LabeledImages(folder, context.transform.steps)
    context.readouts = tuple(READOUTS)
    expected = read_directly(context, dataset, 4)
    patch = expected.local_map.mean((2, 3))
    wanted = {
        'global': expected.global_features,
        'patch': patch,
        'global+patch': torch.cat([expected.global_features, patch], 1),
        'last4': torch.cat(expected.summaries, 1),
    }
    for readout, features in wanted.items():
        torch.testing.assert_close(context.features(dataset, readout), features)


def test_one_pass_serves_all_readouts_and_later_calls(context, folder):
    dataset = LabeledImages(folder, context.transform.steps)
    context.encoder = encoder = CountingEncoder(context.encoder)
    context.readouts = ('global', 'last4')
    first = context.features(dataset)
    # 18 images in shards of 8, 8 and 2, and batches of 4
    assert encoder.calls == 5
    assert torch.equal(context.features(dataset), first)
    assert context.features(dataset, 'last4').shape == (18, 64)
    assert encoder.calls == 5
    context.features(dataset, 'patch')
    assert encoder.calls == 10


def test_a_changed_image_is_encoded_again(context, folder):
    before = context.features(LabeledImages(folder, context.transform.steps))
    first = min(folder.rglob('*.png'))
    Image.new('RGB', (32, 40), 'white').save(first)
    dataset = LabeledImages(folder, context.transform.steps)
    after = context.features(dataset)
    torch.testing.assert_close(after, read_directly(context, dataset).global_features)
    assert not torch.equal(after[0], before[0])


@pytest.mark.parametrize('ending', ['bmp', 'png'])
def test_an_image_that_changes_in_place_is_encoded_again(tmp_path, ending):
    folder = tmp_path / 'data'
    for name in ('a', 'b'):
        (folder / name).mkdir(parents=True)
        Image.new('RGB', (100, 90), 'red').save(folder / name / f'0.{ending}')
    context, path = make_context(folder, tmp_path / 'work'), folder / f'a/0.{ending}'
    size, before = path.stat().st_size, context.features(LabeledImages(folder, context.transform.steps))
    Image.new('RGB', (100, 90), 'lime').save(path)
    after = context.features(LabeledImages(folder, context.transform.steps))
    assert path.stat().st_size == size
    assert not torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])


def test_copies_of_a_dataset_have_the_same_description(context, folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'copy')
    for path in (tmp_path / 'copy').rglob('*.png'):
        os.utime(path, (1, 1))
    descriptions = [
        describe_images(LabeledImages(each, context.transform.steps)) for each in (folder, tmp_path / 'copy')
    ]
    assert descriptions[0] == descriptions[1]


def test_features_that_are_not_finite_are_refused(context, folder):
    dataset = LabeledImages(folder, context.transform.steps)
    context.encoder.network.pos_embed.data[:] = torch.nan
    message = (
        rf'18 of 18 images have .* NaN or infinite, the first is {folder}/blue/.*delete {context.cache.folder}/\w+'
    )
    with pytest.raises(ValueError, match=message):
        context.features(dataset)
    with pytest.raises(ValueError, match=message):
        describe(context, dataset, Descriptor(), {})


def test_arrays_are_computed_once_and_again_if_damaged(tmp_path):
    store, calls = ArrayStore(tmp_path), []

    def compute():
        calls.append(1)
        return dict(a=np.arange(3), b=np.ones(2))

    for _ in range(2):
        assert store.compute('part/one', compute)['a'].tolist() == [0, 1, 2]
    assert len(calls) == 1 and store.read('part/one', 'b').keys() == {'b'}
    path = tmp_path / 'part/one.npz'
    path.write_bytes(path.read_bytes()[:40])
    assert 'part/one' not in store
    store.compute('part/one', compute)
    store.write('block-2', dict(c=np.zeros(1)))
    assert len(calls) == 2 and store.groups('block-') == ['block-2']
    store.remove('block-2')
    assert store.groups() == []


def test_interrupted_extraction_is_resumed(context, folder):
    dataset = LabeledImages(folder, context.transform.steps)
    expected = read_directly(context, dataset).global_features
    plain, context.encoder = context.encoder, CountingEncoder(context.encoder, stop_at=4)
    with pytest.raises(KeyboardInterrupt):
        context.features(dataset)
    context.encoder = CountingEncoder(plain)
    torch.testing.assert_close(context.features(dataset), expected)
    assert context.encoder.calls == 3
    context.encoder = CountingEncoder(plain, stop_at=4)
    with pytest.raises(KeyboardInterrupt):
        context.features(dataset, 'patch')
    context.encoder = CountingEncoder(plain)
    assert context.features(dataset, 'last4').shape == (18, 64)
    context.encoder = CountingEncoder(plain)
    context.features(dataset, 'patch')
    assert context.encoder.calls == 5
    assert sorted(path.name for path in context.cache.folder.glob('*/*')) == [
        'block1.npy', 'block2.npy', 'block3.npy', 'block4.npy', 'definition.json', 'global.npy', 'patch.npy'
    ]  # fmt: skip


def test_a_full_disk_is_an_error_and_leaves_what_was_encoded(context, folder, full_disk):
    dataset = LabeledImages(folder, context.transform.steps)
    context.encoder = CountingEncoder(context.encoder)
    with full_disk('global.npy'), pytest.raises(OSError, match='No space left.*bytes are needed'):
        context.features(dataset)
    names = [path.name for path in context.cache.folder.glob('*/*')]
    assert 'definition.json' in names and not [name for name in names if name.endswith('.tmp')]
    calls = context.encoder.calls
    assert len(context.features(dataset)) == len(dataset) and context.encoder.calls == calls


def test_key_depends_on_weights_transform_data_and_type(context, folder, tmp_path):
    dataset = LabeledImages(folder, context.transform.steps)
    context.features(dataset)
    context.cache.read(make_encoder('transformer', seed=1), dataset, dict(), ('global',))
    context.cache.read(context.encoder, dataset, dict(crop_size=16), ('global',))
    context.features(LabeledImages(folder, context.transform.steps, indices=5))
    FeatureCache(context.cache.folder, 'bfloat16').read(context.encoder, dataset, dict(), ('global',))
    assert len(list(context.cache.folder.iterdir())) == 5


def test_bfloat16_takes_half_the_bytes(context, folder):
    dataset = LabeledImages(folder, context.transform.steps)
    exact = context.features(dataset)
    context.cache = FeatureCache(context.work_dir / 'half', 'bfloat16')
    rounded = context.features(dataset)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    stored = np.load(next(context.cache.folder.glob('*/global.npy')), mmap_mode='r')
    assert stored.itemsize == 2
    with pytest.raises(ValueError, match='float32 or bfloat16'):
        FeatureCache(context.work_dir, 'float16')


def test_unknown_readout_is_refused(context, folder):
    with pytest.raises(ValueError, match='no readout last9: choose among global'):
        context.features(LabeledImages(folder, context.transform.steps), 'last9')


def test_readouts_that_coincide_are_left_out():
    assert distinct_readouts(make_encoder('resnet'), tuple(READOUTS), 32) == ['global', 'last4']
    assert distinct_readouts(make_encoder('transformer'), tuple(READOUTS), 32) == list(READOUTS)


def extract(rank, world_size, folder, work_dir):
    from mmengine.registry import init_default_scope

    init_default_scope('mmpretrain')
    context = make_context(folder, work_dir)
    return context.features(LabeledImages(folder, context.transform.steps), 'last4')


def test_two_processes_equal_one(folder, tmp_path):
    (one,) = run_distributed(extract, str(folder), str(tmp_path / 'one'), world_size=1)
    for features in run_distributed(extract, str(folder), str(tmp_path / 'two')):
        torch.testing.assert_close(features, one)
