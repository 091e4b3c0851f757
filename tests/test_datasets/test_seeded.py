import itertools
import os
import random

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS, TRANSFORMS
from testing.sample_images import write_images

from mm_sop.datasets import SampleKey, SeededDataset
from mm_sop.datasets.randomness import collect_random_state

PIPELINE = [dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=8), dict(type='PackInputs')]


@TRANSFORMS.register_module()
class DrawFromAllGenerators:
    """Adds one number of every global generator to the meta information."""

    def __call__(self, results):
        results['img_shape'] = random.random(), np.random.random(), torch.rand(1).item()
        return results


def build(folder, pipeline=PIPELINE, **settings):
    return DATASETS.build(
        dict(
            type='SeededDataset',
            dataset=dict(type='UnlabeledImages', data_root=str(folder), pipeline=pipeline),
            **{'seed': 5, **settings},
        )
    )


@pytest.fixture(scope='module')
def broken(tmp_path_factory):
    """20 images; every third one is spoilt in some way, and a folder has the name of an image."""
    folder = tmp_path_factory.mktemp('broken')
    files = sorted(write_images(folder, 20, nested=False))
    for number, file in enumerate(files[::3]):
        content = file.read_bytes()
        file.write_bytes((content[: len(content) // 2], b'', b'text')[number % 3])
    (folder / 'folder.jpg').mkdir()
    return folder


def test_samples_depend_on_seed_epoch_and_index(images):
    dataset = build(images)
    keys = [SampleKey(*key) for key in [(0, 0), (0, 1), (1, 0), (1, 1), (10, 0)]]
    samples = [dataset[key]['inputs'] for key in keys]
    np.random.seed(1)
    assert all(torch.equal(dataset[key]['inputs'], sample) for key, sample in zip(keys, samples, strict=True))
    assert all(not torch.equal(samples[i], samples[j]) for i in range(5) for j in range(i))
    assert not torch.equal(build(images, seed=6)[0]['inputs'], samples[0])
    assert dataset[SampleKey(1, 1)]['data_samples'].sample_idx == 1
    assert torch.equal(dataset[1]['inputs'], samples[1])


def test_every_generator_is_seeded_and_left_alone(images):
    dataset = build(images, [dict(type='LoadImage'), dict(type='DrawFromAllGenerators'), dict(type='PackInputs')])
    before = collect_random_state()
    numbers = [dataset[index]['data_samples'].img_shape for index in (3, 3, 4)]
    after = collect_random_state()
    assert numbers[0] == numbers[1]
    assert not set(numbers[0]) & set(numbers[2])
    assert before['python'] == after['python']
    assert torch.equal(before['torch'], after['torch'])
    assert torch.equal(before['numpy'][1], after['numpy'][1]) and before['numpy'][2:] == after['numpy'][2:]


def test_unreadable_images_are_replaced_and_reported(broken):
    dataset = build(broken)
    assert len(dataset) == 20
    reported = {}
    for epoch, index in itertools.product(range(2), range(20)):
        sample = dataset[SampleKey(epoch, index)]
        assert sample['inputs'].shape == (3, 8, 8)
        unreadable = sample['data_samples'].unreadable
        assert isinstance(unreadable, tuple)
        assert bool(unreadable) == (index % 3 == 0)
        reported |= unreadable
    assert sorted(reported) == sorted(str(path) for path in broken.iterdir())[: 3 * 7 : 3]
    assert all(reported.values())
    # Replacements belong to the sample's random stream: repeatable, but different in every epoch.
    keys = [SampleKey(epoch, 0) for epoch in range(20)]
    replacements = [dataset[key]['data_samples'].sample_idx for key in keys]
    assert replacements == [build(broken)[key]['data_samples'].sample_idx for key in keys]
    assert len(set(replacements)) > 5


def test_gives_up_when_nothing_is_readable(tmp_path):
    for number in range(3):
        (tmp_path / f'{number}.png').write_bytes(b'')
    with pytest.raises(RuntimeError, match=r'21 images in a row cannot be read:\n.*0.png: the file is empty') as info:
        build(tmp_path)[0]
    assert len(str(info.value).splitlines()) == 22


def load_epoch(dataset, num_workers, epoch=1, skip=0):
    loader = Runner.build_dataloader(
        dict(
            batch_size=4,
            num_workers=num_workers,
            drop_last=True,
            dataset=dataset,
            sampler=dict(type='ResumableSampler'),
            worker_init_fn=dict(type='pretrain_worker_init'),
            collate_fn=dict(type='default_collate'),
        ),
        seed=5,
    )
    loader.sampler.set_epoch(epoch)
    loader.sampler.skip(skip)
    return [
        (batch['inputs'], [(sample.img_path, sample.unreadable) for sample in batch['data_samples']])
        for batch in loader
    ]


def assert_same_batches(first, second):
    assert len(first) == len(second) > 0
    for (inputs, meta), (other_inputs, other_meta) in zip(first, second, strict=True):
        assert torch.equal(inputs, other_inputs)
        assert meta == other_meta


@pytest.mark.filterwarnings('ignore:This DataLoader will create 3 worker processes')
def test_same_bytes_for_any_number_of_workers_and_after_a_skip(broken):
    dataset = build(broken)
    straight = load_epoch(dataset, 0)
    for num_workers in (1, 3):
        assert_same_batches(load_epoch(dataset, num_workers), straight)
    assert_same_batches(load_epoch(dataset, 1, skip=12), straight[3:])
    assert not torch.equal(load_epoch(dataset, 0, epoch=2)[0][0], straight[0][0])


def test_takes_the_seed_of_the_sampler(images):
    loaded = load_epoch(build(images, seed=None), 0)
    assert_same_batches(loaded, load_epoch(build(images, seed=5), 0))
    own_seed = load_epoch(build(images, seed=6), 0)
    assert [meta for _, meta in own_seed] == [meta for _, meta in loaded]
    assert not torch.equal(own_seed[0][0], loaded[0][0])
    with pytest.raises(RuntimeError, match='SeededDataset has no seed'):
        build(images, seed=None)[0]


def test_shortened_epochs_keep_the_samples(images):
    settings = dict(
        batch_size=2,
        num_workers=0,
        drop_last=True,
        num_batch_per_epoch=2,
        sampler=dict(type='ResumableSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
    )
    loader = Runner.build_dataloader(
        dict(
            dataset=dict(
                type='SeededDataset', dataset=dict(type='UnlabeledImages', data_root=str(images), pipeline=PIPELINE)
            ),
            **settings,
        ),
        seed=5,
    )
    loader.sampler.set_epoch(3)
    samples = [sample for batch in loader for sample in batch['inputs']]
    expected = build(images)
    assert [torch.equal(sample, expected[SampleKey(3, index)]['inputs']) for index, sample in enumerate(samples)] == [
        True
    ] * 4


def test_wraps_datasets_of_mmpretrain(images):
    wrapped = CustomDataset(data_root=str(images), pipeline=PIPELINE, lazy_init=True)
    dataset = SeededDataset(wrapped, seed=0)
    dataset.full_init()
    assert dataset.metainfo == wrapped.metainfo
    assert dataset.metainfo['classes'] == ('a', 'b')
    assert {dataset[index]['data_samples'].gt_label.item() for index in range(len(dataset))} == {0, 1}


def test_wraps_images_without_files(tmp_path):
    @DATASETS.register_module(force=True)
    class Arrays(torch.utils.data.Dataset):
        metainfo = {}

        def __len__(self):
            return 3

        def __getitem__(self, index):
            array = np.full((9, 9, 3), index, np.uint8)
            return TRANSFORMS.build(dict(type='PackInputs'))(dict(img=array))

    sample = SeededDataset(dict(type='Arrays'), seed=0)[SampleKey(1, 1)]
    assert sample['inputs'].unique().tolist() == [1]
    assert sample['data_samples'].unreadable == ()


def test_rejects_an_impossible_fraction(images):
    with pytest.raises(ValueError, match=r'max_unreadable=3 must be in \[0, 1\]'):
        build(images, max_unreadable=3)


def test_images_that_vanish_are_reported(tmp_path):
    files = sorted(write_images(tmp_path, 6, nested=False))
    dataset = build(tmp_path)
    os.remove(files[2])
    data_sample = dataset[2]['data_samples']
    assert set(data_sample.unreadable) == {(str(files[2]), 'No such file or directory')}
    assert data_sample.img_path in [str(file) for file in files if file != files[2]]
