"""Clustering and rank on folders with images of three colors."""

import json
import math

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from testing.distributed import run_distributed
from testing.evaluation_encoders import make_context, record_measurements, run, write_classes

from mm_sop.datasets.labeled.arrays import CIFAR100Images
from mm_sop.datasets.seeded import SampleKey, SeededDataset
from mm_sop.encoders.projector import FrozenProjector
from mm_sop.evaluation.labeled_data import class_labels, random_views
from mm_sop.evaluation.representation.clustering import (
    CIFAR100_SUPERCLASSES,
    ClusteringProtocol,
    agreement,
    k_means,
)
from mm_sop.evaluation.representation.rank import RankProtocol
from mm_sop.functional import alignment, cosine_silhouette, effective_rank, lidar, rankme, uniformity
from mm_sop.utils.files import write_atomically


def projector():
    torch.manual_seed(1)
    neck = dict(type='SOPNeck', in_channels=32, hid_channels=16, out_channels=8)
    return FrozenProjector(MODELS.build(neck))


@pytest.fixture
def context(data, tmp_path):
    return make_context(data, tmp_path, projector=projector())


def test_clustering_of_every_layer(context):
    protocol = ClusteringProtocol(tries=3)
    result = run(protocol, context)
    dataset = protocol.find_data(context)['val']
    taps, labels = context.project(context.features(dataset)), class_labels(dataset)
    assert list(result.card['val_class']) == ['encoding', 'hidden1', 'hidden2', 'embedding']
    for suffix, features in {'': taps['encoding'], '_embedding': taps['embedding']}.items():
        tries = [agreement(labels.numpy(), k_means(features, 3, seed)) for seed in range(3)]
        for metric in ('accuracy', 'nmi', 'ari'):
            score = result.scores[f'val_class_{metric}{suffix}']
            assert score.value == pytest.approx(np.mean([each[metric] for each in tries]))
            assert score.error == pytest.approx(np.std([each[metric] for each in tries]))
        silhouettes = cosine_silhouette(features, labels).numpy()
        assert result.scores[f'val_class_silhouette{suffix}'].value == pytest.approx(silhouettes.mean())
        assert result.scores[f'val_class_silhouette_spread{suffix}'].value == pytest.approx(silhouettes.std())
    json.dumps(result.card)


def test_clustering_by_identity_where_it_is_known(tmp_path):
    for part in ('bank', 'seen', 'test'):
        write_classes(tmp_path / 'classes' / part, 4)
        files = [
            dict(path=f'{part}/{name}/{name}_0_{index}.png', label=label, identity=2 * label + index // 2)
            for label, name in enumerate(('blue', 'green', 'red'))
            for index in range(4)
        ]
        file_list = dict(classes=['blue', 'green', 'red'], files=files)
        write_atomically(tmp_path / f'classes/{part}.json', json.dumps(file_list))
    result = run(ClusteringProtocol(tries=1), make_context(tmp_path, tmp_path / 'work'))
    assert {name.rpartition('_')[0] for name in result.scores if name.endswith('_nmi')} == {
        'seen_class', 'seen_identity', 'test_class', 'test_identity'
    }  # fmt: skip


def test_superclasses_of_cifar100():
    assert len(CIFAR100_SUPERCLASSES) == 100
    assert np.bincount(CIFAR100_SUPERCLASSES).tolist() == [5] * 20
    names = CIFAR100Images.METAINFO['classes']
    flowers = {'orchid', 'poppy', 'rose', 'sunflower', 'tulip'}
    of_flowers = {CIFAR100_SUPERCLASSES[names.index(name)] for name in flowers}
    assert len(of_flowers) == 1
    assert {name for name, each in zip(names, CIFAR100_SUPERCLASSES, strict=True) if each in of_flowers} == flowers


def test_rank_scores_are_those_of_the_functions(context):
    protocol = RankProtocol(lidar_images=10, views=3)
    result = run(protocol, context)
    dataset = protocol.find_data(context)['train']
    order = np.random.default_rng(context.seed).permutation(len(dataset))
    plain = context.project(context.features(dataset)[order])
    for suffix, features in {'': plain['encoding'], '_embedding': plain['embedding']}.items():
        values = dict(
            rankme=rankme(features),
            effective_rank=effective_rank(features - features.mean(0)),
            uniformity=uniformity(features),
        )
        for name, value in values.items():
            assert result.scores[f'{name}{suffix}'].value == pytest.approx(value, rel=1e-5)
    assert result.card['dimensions'] == dict(encoding=32, hidden1=16, hidden2=16, embedding=8)


def test_views_are_grouped_by_image(context, monkeypatch):
    measured = record_measurements(context, monkeypatch)
    protocol = RankProtocol(lidar_images=4, views=3)
    result = run(protocol, context)
    dataset = protocol.find_data(context)['train']
    rows = np.random.default_rng(context.seed).permutation(len(dataset))[:4]
    views = measured['views']['features'].unflatten(0, (4, 3))
    seeded = SeededDataset(random_views(dataset, context.transform), context.seed)
    for position, row in enumerate(rows):
        for view in range(3):
            sample = seeded[SampleKey(view, row)]
            batch = dict(inputs=sample['inputs'][None], data_samples=[sample['data_samples']])
            torch.testing.assert_close(views[position, view], context.encoder.encode(batch)['features'][0])
    assert result.scores['lidar'].value == pytest.approx(lidar(views))
    assert result.scores['alignment'].value == pytest.approx(alignment(views[:, 0], views[:, 1]))


def evaluate(rank, world_size, data, work_dir):
    context = make_context(data, work_dir, projector=projector())
    result = run(RankProtocol(lidar_images=7, views=3), context)
    return {name: score.value for name, score in result.scores.items()}


def test_two_processes_find_the_same(data, tmp_path):
    alone = evaluate(0, 1, data, tmp_path / 'alone')
    both = run_distributed(evaluate, data, tmp_path / 'both')
    for found in both:
        assert found == pytest.approx(alone, rel=1e-4)
    assert not math.isnan(sum(alone.values()))
