"""Pairs of images as samples, drawn reproducibly, from the data that were mined and no others."""

import json
import shutil

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmpretrain.registry import DATASETS
from PIL import Image

from mm_sop.datasets import SampleKey, SeededDataset, SemanticPairDataset, UnlabeledImages
from mm_sop.datasets.semantic_pairs import ManifestError, PairManifest, describe_data, pair_pipeline
from mm_sop.evaluation.retrieval.mining import write_manifest

PAIRS = np.array([[0, 3], [1, 3], [2, 5]])
VIEW = [dict(type='Resize', scale=8)]
PLAIN = [
    dict(type='LoadImage'),
    dict(type='MultiView', num_views=2, transforms=[VIEW]),
    dict(type='PackInputs'),
]
RANDOM = [
    dict(type='LoadImage'),
    dict(
        type='MultiView',
        num_views=[1, 1],
        transforms=[
            [dict(type='FastRandomResizedCrop', scale=8), dict(type='RandomFlip', prob=0.5)],
            [dict(type='FastRandomResizedCrop', scale=8), dict(type='Solarize', thr=128, prob=0.5)],
        ],
    ),
    dict(type='BlockMaskGenerator', grid=(4, 4), num_views=2),
    dict(type='PackInputs', algorithm_keys=['mask']),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Seven images, each of one gray level that is 30 times its number."""
    folder = tmp_path_factory.mktemp('gray')
    for number in range(7):
        path = folder / 'abc'[number % 3] / f'{number}.png'
        path.parent.mkdir(exist_ok=True)
        Image.new('RGB', (16, 16), (30 * number,) * 3).save(path)
    return folder


@pytest.fixture(scope='module')
def levels(folder):
    """Numbers of the images in the order of the dataset."""
    dataset = UnlabeledImages(folder)
    return [int(dataset.get_data_info(index)['img_path'].split('/')[-1][0]) for index in range(7)]


def manifest_of(dataset, pairs=PAIRS):
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    return PairManifest(pairs, np.full(len(pairs), 0.98, np.float32), describe_data(dataset), dict(encoder='test'))


def make_dataset(folder, mode='concat', pipeline=PLAIN, pairs=PAIRS, **options):
    images = UnlabeledImages(folder)
    return SemanticPairDataset(images, manifest_of(images, pairs), pipeline, mode, **options)


def shown(sample):
    """Numbers of the images that the views show."""
    return [round(view.float().mean().item() / 30) for view in sample['inputs']]


def test_concat_shows_images_and_pairs(folder, levels):
    dataset = make_dataset(folder)
    assert len(dataset) == 10
    for index in range(7):
        sample = dataset[index]
        assert shown(sample) == [levels[index]] * 2
        assert sample['data_samples'].image_ids == (index, index)
        assert not sample['data_samples'].is_semantic
    for index, (first, second) in enumerate(PAIRS.tolist()):
        sample = dataset[7 + index]
        assert sorted(sample['data_samples'].image_ids) == [first, second]
        assert shown(sample) == [levels[number] for number in sample['data_samples'].image_ids]
        assert sample['data_samples'].is_semantic


def test_partners_of_both_images(folder):
    sample = make_dataset(folder)[8]['data_samples']
    expected = {1: [3, -1], 3: [0, 1]}
    assert sample.partner_ids.tolist() == [expected[index] for index in sample.image_ids]
    assert make_dataset(folder)[4]['data_samples'].partner_ids.tolist() == [[-1, -1]] * 2


def test_roles_are_swapped_half_of_the_time(folder):
    dataset = SeededDataset(make_dataset(folder), seed=0)
    swapped = sum(dataset[SampleKey(epoch, 7)]['data_samples'].image_ids == (3, 0) for epoch in range(1000))
    assert 440 < swapped < 560  # 3.8 standard deviations


def test_replace_keeps_the_length_and_the_probability(folder):
    dataset = SeededDataset(make_dataset(folder, 'replace', partner_prob=0.25), seed=0)
    assert len(dataset) == 7
    ids = [dataset[SampleKey(epoch, 3)]['data_samples'].image_ids for epoch in range(1000)]
    assert all(first == 3 for first, _ in ids)
    counts = {second: sum(pair[1] == second for pair in ids) for second in (0, 1, 3)}
    assert sum(counts.values()) == 1000
    assert 195 < counts[0] + counts[1] < 305
    assert counts[0] > 75 < counts[1]
    assert all(dataset[SampleKey(epoch, 4)]['data_samples'].image_ids == (4, 4) for epoch in range(50))


def test_joint_adds_a_view_of_a_partner(folder, levels):
    dataset = make_dataset(folder, 'joint')
    assert len(dataset) == 7
    assert shown(dataset[2]) == [levels[2], levels[2], levels[5]]
    assert dataset[2]['data_samples'].image_ids == (2, 5)
    assert shown(dataset[6]) == [levels[6]] * 3
    assert not dataset[6]['data_samples'].is_semantic


def test_local_crops_show_both_images_by_turns(folder, levels):
    views = dict(type='MultiView', num_views=[1, 1, 3], transforms=[VIEW, VIEW, [dict(type='Resize', scale=4)]])
    sample = make_dataset(folder, pipeline=[PLAIN[0], views, PLAIN[2]])[9]
    first, second = (levels[index] for index in sample['data_samples'].image_ids)
    assert shown(sample) == [first, second, first, second, first]


def test_views_keep_their_own_transforms(folder, levels):
    dark = [*VIEW, dict(type='Solarize', thr=0, prob=1.0)]
    views = dict(type='MultiView', num_views=[1, 1], transforms=[VIEW, dark])
    sample = make_dataset(folder, pipeline=[PLAIN[0], views, PLAIN[2]])[9]
    first, second = (levels[index] for index in sample['data_samples'].image_ids)
    means = [view.float().mean().item() for view in sample['inputs']]
    assert means == [30 * first, 255 - 30 * second]


def equal_samples(first, second):
    same = all(torch.equal(a, b) for a, b in zip(first['inputs'], second['inputs'], strict=True))
    return same and np.array_equal(first['data_samples'].mask, second['data_samples'].mask)


def test_without_pairs_samples_are_those_of_the_base_method(folder):
    base = SeededDataset(UnlabeledImages(folder, RANDOM), seed=1)
    for mode in ('concat', 'replace'):
        wrapped = SeededDataset(make_dataset(folder, mode, RANDOM, pairs=[]), seed=1)
        assert len(wrapped) == len(base)
        keys = [SampleKey(epoch, index) for epoch in range(3) for index in range(7)]
        assert all(equal_samples(base[key], wrapped[key]) for key in keys)


def test_ordinary_samples_are_those_of_the_base_method(folder):
    base = SeededDataset(UnlabeledImages(folder, RANDOM), seed=1)
    wrapped = SeededDataset(make_dataset(folder, 'concat', RANDOM), seed=1)
    assert all(equal_samples(base[index], wrapped[index]) for index in range(7))


def test_samples_depend_on_epoch_and_index_alone(folder):
    first, second = (SeededDataset(make_dataset(folder, 'concat', RANDOM), seed=2) for _ in range(2))
    keys = [SampleKey(epoch, index) for epoch in range(3) for index in range(10)]
    samples = {key: first[key] for key in keys}
    assert all(equal_samples(samples[key], second[key]) for key in reversed(keys))
    assert not equal_samples(samples[0, 7], samples[1, 7])


def test_unreadable_partner_is_replaced(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'data')
    images = UnlabeledImages(tmp_path / 'data')
    broken = images.get_data_info(5)['img_path']
    with open(broken, 'wb'):
        pass
    dataset = SeededDataset(make_dataset(tmp_path / 'data'), seed=0)
    sample = dataset[9]
    assert sample['data_samples'].unreadable == ((broken, 'the file is empty'),)
    assert 5 not in sample['data_samples'].image_ids


@DATASETS.register_module()
class ImagesInMemory(BaseDataset):
    def __init__(self, values, **kwargs):
        self.values = values
        super().__init__(**kwargs)

    def load_data_list(self):
        return [dict(img=np.full((4, 4, 3), value, np.uint8)) for value in self.values]


def test_images_in_memory():
    def build(values):
        return ImagesInMemory(values, serialize_data=False)

    images = build(range(6))
    pipeline = [dict(type='MultiView', num_views=2, transforms=[[]]), dict(type='PackInputs')]
    dataset = SemanticPairDataset(images, manifest_of(images), pipeline)
    sample = dataset[7]
    assert [int(view[0, 0, 0]) for view in sample['inputs']] == list(sample['data_samples'].image_ids)
    with pytest.raises(ManifestError, match='sha256'):
        SemanticPairDataset(build([0, 1, 2, 3, 5, 4]), manifest_of(images), pipeline)


def test_other_data_are_refused(folder, tmp_path):
    manifest = manifest_of(UnlabeledImages(folder))
    shutil.copytree(folder, tmp_path / 'moved')
    # The place does not matter.
    SemanticPairDataset(UnlabeledImages(tmp_path / 'moved'), manifest, PLAIN)
    (tmp_path / 'moved/a/0.png').rename(tmp_path / 'moved/a/x.png')
    with pytest.raises(ManifestError, match='the pairs were mined from other data(?s:.*)first: mined .a/0.png'):
        SemanticPairDataset(UnlabeledImages(tmp_path / 'moved'), manifest, PLAIN)
    with pytest.raises(ManifestError, match='num_images: mined 7, found 6'):
        SemanticPairDataset(UnlabeledImages(folder, limit=6), manifest, PLAIN)


def test_manifest_on_the_disk(folder, tmp_path):
    images = UnlabeledImages(folder)
    manifest, path = manifest_of(images), tmp_path / 'pairs.json'
    write_manifest(manifest, path)
    loaded = PairManifest.load(path)
    assert np.array_equal(loaded.pairs, manifest.pairs)
    assert loaded.cosines.dtype == np.float32
    assert (loaded.data, loaded.definition) == (manifest.data, manifest.definition)
    assert len(SemanticPairDataset(images, path, PLAIN)) == 10
    write_manifest(manifest, path)
    with pytest.raises(ManifestError, match='holds other pairs'):
        write_manifest(manifest_of(images, PAIRS[:2]), path)
    np.savez(path.with_suffix('.npz'), pairs=PAIRS[:2], cosines=manifest.cosines[:2])
    with pytest.raises(ManifestError, match='not those that pairs.json describes'):
        PairManifest.load(path)
    path.write_text(json.dumps(dict(format=2)))
    with pytest.raises(ManifestError, match='is damaged'):
        PairManifest.load(path)
    with pytest.raises(ManifestError, match='mine the pairs first'):
        PairManifest.load(tmp_path / 'missing.json')


def test_lazy_dataset_reads_the_manifest_when_it_is_used(folder):
    images = UnlabeledImages(folder, lazy_init=True)
    manifest = manifest_of(UnlabeledImages(folder, limit=3))
    dataset = SeededDataset(SemanticPairDataset(images, manifest, PLAIN, lazy_init=True))
    with pytest.raises(ManifestError):
        dataset.full_init()


def test_bad_arguments(folder):
    for options, message in [
        (dict(mode='both'), "mode='both'"),
        (dict(partner_prob=2), 'partner_prob=2'),
        (dict(pipeline=[PLAIN[0], PLAIN[2]]), 'one MultiView, found 0'),
        (dict(mode='joint', pipeline=[dict(PLAIN[1], num_views=3)]), 'two views, found 3'),
    ]:
        with pytest.raises(ValueError, match=message):
            make_dataset(folder, **options)
    with pytest.raises(ValueError, match="partner_views='even'"):
        DATASETS.build(
            dict(
                type='SemanticPairDataset',
                dataset=dict(type='UnlabeledImages', data_root=str(folder)),
                manifest='pairs.json',
                pipeline=[dict(PLAIN[1], type='PairMultiView', partner_views='even')],
            )
        )


def test_pipeline_is_not_changed():
    steps = pair_pipeline(PLAIN, 'joint')
    assert steps[1]['num_views'] == [3]
    assert PLAIN[1] == dict(type='MultiView', num_views=2, transforms=[VIEW])
    assert [step['type'].split('.')[-1] for step in steps] == ['ApplyToPair', 'PairMultiView', 'PackInputs']
