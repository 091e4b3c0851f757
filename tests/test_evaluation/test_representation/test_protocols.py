"""Clustering, rank, transfer and fine-tuning on folders with images of three colors."""

import json
import math

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from testing.distributed import run_distributed
from testing.evaluation_encoders import make_context, write_classes

from mm_sop.datasets.labeled.arrays import CIFAR100Images
from mm_sop.datasets.seeded import SampleKey, SeededDataset
from mm_sop.encoders.projector import FrozenProjector
from mm_sop.evaluation.classification import finetune
from mm_sop.evaluation.classification.finetune import FinetuneProtocol
from mm_sop.evaluation.classification.transfer import TransferProtocol
from mm_sop.evaluation.context import MissingDataError
from mm_sop.evaluation.labeled_data import class_labels, random_views
from mm_sop.evaluation.representation.clustering import (
    CIFAR100_SUPERCLASSES,
    ClusteringProtocol,
    agreement,
    k_means,
)
from mm_sop.evaluation.representation.rank import RankProtocol
from mm_sop.functional import alignment, cosine_silhouette, effective_rank, lidar, rankme, uniformity
from mm_sop.report.evaluation import draw
from mm_sop.utils.files import write_atomically

SHORT = dict(epochs=2, min_iterations=1, batch_size=8)


def projector():
    torch.manual_seed(1)
    neck = dict(type='SOPNeck', in_channels=32, hid_channels=16, out_channels=8)
    return FrozenProjector(MODELS.build(neck))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Twelve training and four validation images of each class."""
    folder = tmp_path_factory.mktemp('data')
    write_classes(folder / 'train', 12)
    write_classes(folder / 'val', 4, seed=1)
    return folder


@pytest.fixture
def context(data, tmp_path):
    return make_context(data, tmp_path, projector=projector())


def run(protocol, context):
    return protocol.run(context, protocol.find_data(context))


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


def test_views_are_grouped_by_image(context):
    protocol = RankProtocol(lidar_images=4, views=3)
    dataset = protocol.find_data(context)['train']
    rows = np.array([5, 0, 9, 2])
    views = protocol._encode_views(context, dataset, rows).unflatten(0, (4, 3))
    reference = random_views(dataset, context.transform)
    seeded = SeededDataset(reference, context.seed)
    for position, row in enumerate(rows):
        for view in range(3):
            sample = seeded[SampleKey(view, row)]
            batch = dict(inputs=sample['inputs'][None], data_samples=[sample['data_samples']])
            torch.testing.assert_close(views[position, view], context.encoder.encode(batch)['features'][0])
    result = protocol.run(context, dict(train=dataset))
    chosen = np.random.default_rng(context.seed).permutation(len(dataset))[:4]
    expected = protocol._encode_views(context, dataset, chosen).unflatten(0, (4, 3))
    assert result.scores['lidar'].value == pytest.approx(lidar(expected))
    assert result.scores['alignment'].value == pytest.approx(alignment(expected[:, 0], expected[:, 1]))


def write_pets(folder):
    """Oxford-IIIT Pets in its true layout."""
    write_classes(folder / 'images', 8, classes=('Abyssinian', 'beagle'))
    (folder / 'annotations').mkdir()
    for split, numbers in dict(trainval=range(6), test=range(6, 8)).items():
        lines = [f'{name}_0_{n} {k} 1 1' for k, name in enumerate(('Abyssinian', 'beagle'), 1) for n in numbers]
        (folder / f'annotations/{split}.txt').write_text('\n'.join(lines) + '\n')
    for path in (folder / 'images').glob('*/*.png'):
        path.rename(folder / 'images' / f'{path.stem}.jpg')


def test_transfer_to_the_sets_that_exist(tmp_path, capsys):
    write_pets(tmp_path / 'Oxford-IIIT_Pets')
    for part, count in (('train', 8), ('val', 2)):
        write_classes(tmp_path / 'stl10' / part, count, seed=count)
    protocol = TransferProtocol(sets=('Oxford-IIIT_Pets', 'food-101', 'stl10'), num_neighbors=20, linear_epochs=2)
    context = make_context(tmp_path, tmp_path / 'work')
    result = run(protocol, context)
    assert list(result.scores) == [
        'Oxford-IIIT_Pets_knn_test', 'Oxford-IIIT_Pets_linear_test', 'stl10_knn_val', 'stl10_linear_val'
    ]  # fmt: skip
    assert all(0 <= score.value <= 1 for score in result.scores.values())
    assert protocol.readouts == ('global', 'global+patch', 'last4')
    assert len(protocol.find_data(context)['Oxford-IIIT_Pets/train']) == 12
    assert 'no folder food-101' in capsys.readouterr().out


def test_transfer_calls_the_data_folder_by_its_name(tmp_path):
    for part in ('train', 'val'):
        write_classes(tmp_path / 'images' / part, 1)
    found = TransferProtocol().find_data(make_context(tmp_path / 'images', tmp_path))
    assert list(found) == ['images/train', 'images/val']


def test_transfer_without_any_set(tmp_path):
    with pytest.raises(MissingDataError, match='has none of the sets food-101, Flowers102, .*see docs/evaluation.md'):
        TransferProtocol().find_data(make_context(tmp_path, tmp_path))


@pytest.mark.learning
def test_fine_tuning_learns(context, seed, expect):
    context.seed = seed
    options = dict(epochs=6, batch_size=12, learning_rate=0.03, mixup=0.0, cutmix=0.0, fractions=(1, 0.5))
    result = run(FinetuneProtocol(min_iterations=18, **options), context)
    assert list(result.scores) == ['val_class', 'val_class_50%']
    expect('accuracy', result.scores['val_class'].value, above=0.45)
    assert result.card['subsets'] == {'50%': dict(labels=18, tries=1, drawn='per class')}
    assert [image.name for image in draw('finetune', result.data)] == ['confusion_val', 'labels']
    assert all(not parameter.requires_grad for parameter in context.encoder.parameters())


def test_classifier_starts_with_the_weights_of_the_encoder(context):
    settings = finetune.FinetuneSettings(**SHORT)
    classifier = finetune.build_classifier(context.encoder, 32, 3, settings)
    classifier.init_weights()
    batch = dict(inputs=torch.full((2, 3, 32, 32), 90, dtype=torch.uint8), data_samples=None)
    images = classifier.data_preprocessor(batch, False)['inputs']
    torch.testing.assert_close(images, context.encoder.data_preprocessor(batch, False)['inputs'])
    (vectors,) = classifier.eval().extract_feat(images)
    torch.testing.assert_close(vectors, context.encoder.read(batch).global_features)
    names = [type(each).__name__ for each in classifier.data_preprocessor.batch_augments.augments]
    assert names == ['Mixup', 'CutMix']


@pytest.mark.parametrize('kind', ['resnet', 'transformer'])
def test_layers_near_the_image_learn_slower(data, tmp_path, monkeypatch, kind):
    context = make_context(data, tmp_path, kind)
    runners = []
    original = finetune.Runner.train
    monkeypatch.setattr(finetune.Runner, 'train', lambda self: runners.append(self) or original(self))
    run(FinetuneProtocol(**SHORT, layer_decay=0.5, fractions=(1,)), context)
    rates = {group['initial_lr'] for group in runners[0].optim_wrapper.param_groups}
    assert sorted(rates, reverse=True) == pytest.approx([4e-3 * 8 / 256 * 0.5**depth for depth in range(6)])


def test_few_images_are_seen_more_often(context, monkeypatch):
    lengths = []
    original = finetune.Runner.train
    monkeypatch.setattr(finetune.Runner, 'train', lambda self: lengths.append(self.max_iters) or original(self))
    run(FinetuneProtocol(epochs=1, min_iterations=6, batch_size=8, fractions=(1, 0.1)), context)
    # 36 // 8 = 4 steps need two epochs, 3 images make one step.
    assert lengths == [8, 6]


def test_interrupted_fine_tuning_is_resumed(context, monkeypatch):
    protocol = FinetuneProtocol(**dict(SHORT, epochs=5), fractions=(1,))
    straight = run(protocol, make_context(context.data, context.work_dir / 'straight'))
    steps = []
    original = finetune.ImageClassifier.train_step

    def stop(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 11:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(finetune.ImageClassifier, 'train_step', stop)
    with pytest.raises(KeyboardInterrupt):
        run(protocol, context)
    resumed = run(protocol, context)
    # Two of five epochs were saved: 12 of 20 steps remain.
    assert len(steps) == 11 + 12
    assert resumed.scores == straight.scores


def evaluate(rank, world_size, data, work_dir):
    from mmengine.registry import init_default_scope

    init_default_scope('mmpretrain')
    context = make_context(data, work_dir, projector=projector())
    rank_result = run(RankProtocol(lidar_images=7, views=3), context)
    run(FinetuneProtocol(**SHORT, fractions=(1,)), context)
    return {name: score.value for name, score in rank_result.scores.items()}


def test_two_processes_find_the_same(data, tmp_path):
    alone = evaluate(0, 1, data, tmp_path / 'alone')
    both = run_distributed(evaluate, data, tmp_path / 'both')
    for found in both:
        assert found == pytest.approx(alone, rel=1e-4)
    assert not math.isnan(sum(alone.values()))


def finetuned_buffers(rank, world_size, data, work_dir):
    from mmengine.registry import init_default_scope

    init_default_scope('mmpretrain')
    context = make_context(data, work_dir, 'resnet')
    networks = []

    def predict(_, network, dataset):
        networks.append(network)
        return np.zeros(len(dataset), dtype=int)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, '_predict', predict)
        run(FinetuneProtocol(**SHORT, fractions=(1,)), context)
    return [buffer.float() for buffer in networks[0].buffers()]


def test_processes_evaluate_the_same_classifier(data, tmp_path):
    first, second = run_distributed(finetuned_buffers, data, tmp_path)
    assert len(first) > 10 and all(map(torch.equal, first, second))


def test_fractions_of_the_labels_rise_in_the_chart(context, monkeypatch):
    monkeypatch.setattr(finetune, 'finetune', lambda *args: None)
    monkeypatch.setattr(finetune, '_predict', lambda context, network, dataset: np.zeros(len(dataset), dtype=int))
    result = run(FinetuneProtocol(**SHORT, fractions=(1, 0.25, 0.5)), context)
    assert list(result.data['lines']['val']) == ['25%', '50%', '100%']
