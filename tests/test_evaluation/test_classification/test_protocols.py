"""k-NN, linear and logistic protocols on folders with images of three colors."""

import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from testing.distributed import run_distributed
from testing.evaluation_encoders import make_context, run, write_classes
from torch.nn.functional import linear

from mm_sop.datasets import LabeledImages
from mm_sop.evaluation.classification import linear as linear_protocol
from mm_sop.evaluation.classification.common import label_subsets, score_accuracy, score_tries
from mm_sop.evaluation.classification.knn import KNNProtocol
from mm_sop.evaluation.classification.linear import CachedBatches, LinearProtocol
from mm_sop.evaluation.classification.linear_grid import SCHEDULES, AdamGrid, LinearGrid, cosine_factor
from mm_sop.evaluation.classification.logistic import LogisticProtocol, fit_logistic, standardize
from mm_sop.evaluation.context import build_protocol
from mm_sop.evaluation.features.store import FeatureCache
from mm_sop.evaluation.labeled_data import class_labels
from mm_sop.functional.knn import knn_scores
from mm_sop.report.evaluation import draw

FEW = dict(fractions=(0.5,), shots=(1, 2), tries=3)
GRID = dict(learning_rates=(1e-5, 0.1, 1.0), weight_decays=(0.0,), epochs=4, batch_size=8, validation=0.25)


def features_and_labels(protocol, context):
    data = protocol.find_data(context)
    features = [context.features(data[name]) for name in ('train', 'val')]
    return *features, *[class_labels(data[name]) for name in ('train', 'val')]


def accuracy_of(votes, truth):
    return float((votes.argmax(1) == truth).float().mean())


def test_knn_scores_are_those_of_the_function(context):
    protocol = KNNProtocol(num_neighbors=(1, 5, 99), **FEW)
    result = run(protocol, context)
    train, val, labels, truth = features_and_labels(protocol, context)
    for k, votes in knn_scores(train, labels, val, [1, 5]).items():
        assert result.scores[f'val_class_k{k}'].value == pytest.approx(accuracy_of(votes, truth))
    assert 'val_class_k99' not in result.scores
    assert [image.name for image in draw('knn', result.data)] == ['confusion_val', 'few_labels']
    assert result.card['subsets']['2 shot'] == dict(labels=6, tries=3, drawn='per class', num_neighbors=[2, 1, 5])
    assert result.card['vote'] == 'weights exp(cosine / 0.07)'


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_knn_with_few_labels(context, metric):
    protocol = KNNProtocol(num_neighbors=(4, 5, 9), metric=metric, **FEW)
    result = run(protocol, context)
    voting = dict(metric=metric, temperature=0.07 if metric == 'cosine' else math.inf)
    train, val, labels, truth = features_and_labels(protocol, context)
    subsets = label_subsets(context, protocol.find_data(context)['train'], **FEW)
    expected = {'50%': [6, 4, 5, 9], '1 shot': [1], '2 shot': [2, 4, 5]}
    assert {subset: card['num_neighbors'] for subset, card in result.card['subsets'].items()} == expected
    for subset, k in ((subset, k) for subset, numbers in expected.items() for k in numbers):
        found = [
            accuracy_of(knn_scores(train[rows], labels[rows], val, k, **voting)[k], truth)
            for rows in map(torch.from_numpy, subsets[subset])
        ]
        score = result.scores[f'val_class_{subset.replace(" ", "_")}_k{k}']
        assert score.value == pytest.approx(np.mean(found))
        assert score.error == pytest.approx(np.std(found, ddof=1))


def test_majority_of_the_nearest_by_distance(context):
    protocol = build_protocol('knn', dict(preset='resa_cifar', fractions=(), shots=()))
    result = run(protocol, context)
    train, val, labels, truth = (part.numpy() for part in features_and_labels(protocol, context))
    right = [
        np.bincount(labels[np.linalg.norm(train.astype(np.float64) - query, axis=1).argsort()[:5]]).argmax() == label
        for query, label in zip(val, truth, strict=True)
    ]
    assert result.scores['val_class_k5'].value == pytest.approx(np.mean(right))
    assert (result.card['metric'], result.card['vote']) == ('euclidean', 'majority')


def test_file_lists_beside_the_data_replace_draws(tmp_path):
    write_classes(tmp_path / 'train', 3)
    write_classes(tmp_path / 'val', 1)
    (tmp_path / '1percent.txt').write_text('blue_0_2.png\ngreen_0_1.png\n')
    context = make_context(tmp_path, tmp_path / 'work')
    train = KNNProtocol().find_data(context)['train']
    subsets = label_subsets(context, train, (0.01, 0.1), (), 2)
    assert [rows.tolist() for rows in subsets['1%']] == [[2, 4]]
    assert len(subsets['10%']) == 2


def test_logistic_scores_are_those_of_the_function(context):
    protocol = LogisticProtocol(max_iterations=50, **FEW)
    result = run(protocol, context)
    train, val, labels, truth = features_and_labels(protocol, context)
    subsets = label_subsets(context, protocol.find_data(context)['train'], **FEW)
    found = []
    for rows in map(torch.from_numpy, subsets['2 shot']):
        few, test = standardize(train[rows], val)
        weight, bias = fit_logistic(few, labels[rows], 3, max_iterations=50)
        found.append(accuracy_of(linear(test, weight, bias), truth))
    assert result.scores['val_class_2_shot'].value == pytest.approx(np.mean(found))
    assert list(result.scores) == ['val_class_50%', 'val_class_2_shot', 'val_class_1_shot']


@pytest.mark.learning
def test_linear_learns_and_reports_the_selected_classifier(context, seed, expect):
    context.seed = seed
    result = run(LinearProtocol(**dict(GRID, epochs=40)), context)
    expect('accuracy', result.scores['val_class'].value, above=0.7)
    chosen = result.card['chosen']
    assert chosen['validation_accuracy'] == max(max(each) for each in result.card['validation'].values())
    assert chosen['lr'] > 1e-5
    assert result.card['classifiers'] == 2 * 2 * 3
    assert [image.name for image in draw('linear', result.data)] == ['grid', 'confusion_val']
    assert not list(context.work_dir.glob('*.pth'))


@pytest.mark.parametrize('augment', [False, True])
def test_interrupted_linear_training_is_resumed(context, monkeypatch, augment):
    protocol = LinearProtocol(augment=augment, **GRID)
    steps = []

    def stop(step, total):
        steps.append(step)
        if len(steps) == 11:
            raise KeyboardInterrupt
        return 0.5

    monkeypatch.setitem(SCHEDULES, 'cosine', lambda step, total: 0.5)
    straight = run(protocol, context)
    monkeypatch.setitem(SCHEDULES, 'cosine', stop)
    with pytest.raises(KeyboardInterrupt):
        run(protocol, context)
    resumed = run(protocol, context)
    assert resumed.card == straight.card
    assert resumed.scores == straight.scores
    assert 0 not in steps[11:]


def test_training_is_resumed_only_with_the_same_data_and_type(context, data):
    protocol, paths = LinearProtocol(**GRID), set()
    for dtype, part in (('float32', 'train'), ('bfloat16', 'train'), ('float32', 'val')):
        context.cache = FeatureCache(context.work_dir / 'features', dtype)
        paths.add(protocol._state_path(context, LabeledImages(data / part)))
    assert len(paths) == 3


def test_a_class_with_one_image_is_learned(tmp_path):
    write_classes(tmp_path / 'train', 12, classes=('blue', 'green'))
    write_classes(tmp_path / 'train', 1, classes=('red',))
    write_classes(tmp_path / 'val', 4, seed=1)
    with patch.object(linear_protocol, 'CachedBatches', side_effect=CachedBatches) as build:
        run(LinearProtocol(**GRID), make_context(tmp_path, tmp_path / 'work'))
    assert build.call_args.args[1].bincount().tolist() == [9, 9, 1]
    with pytest.raises(ValueError, match='every class has a single training image'):
        write_classes(tmp_path / 'few/train', 1)
        write_classes(tmp_path / 'few/val', 1)
        run(LinearProtocol(**GRID), make_context(tmp_path / 'few', tmp_path / 'work'))


def test_fewer_images_than_neighbors_are_explained(context):
    with pytest.raises(ValueError, match=r'num_neighbors=\(99,\) with 36 training images: expected'):
        run(KNNProtocol(num_neighbors=(99,), **FEW), context)


@pytest.mark.parametrize('preset', list(LinearProtocol.presets))
def test_presets_of_the_papers(context, monkeypatch, preset):
    protocol = build_protocol('linear', dict(preset=preset, epochs=5, batch_size=27, validation=0.25))
    steps = []
    monkeypatch.setattr(LinearGrid, 'step', lambda grid, features, labels, factor: steps.append((grid, factor)))
    result = run(protocol, context)
    optimizer, course, rates = {
        'resa': ('sgd', [1, 1, 1, 0.1, 0.01], (10, 40)),
        'sepp': ('sgd', [1, 1, 1, 0.1, 0.01], (30,)),
        'co_ssl_sgd': ('sgd', [1, 1, 1, 0.1, 0.01], (0.1, 0.3)),
        'co_ssl': ('lars', [cosine_factor(step, 5) for step in range(5)], (1.6 / 4096 * 256,)),
        'resa_cifar': ('adam', [1e-4 ** (step / 5) for step in range(5)], (0.01,)),
    }[preset]
    scale = 1 if optimizer == 'adam' else 27 / 256
    assert [factor for _, factor in steps] == pytest.approx([scale * factor for factor in course])
    assert [(head.lr, head.optimizer) for head in steps[0][0].heads] == [(rate, optimizer) for rate in rates]
    assert isinstance(steps[0][0], AdamGrid) == (optimizer == 'adam')
    assert [image.name for image in draw('linear', result.data)] == ['grid', 'confusion_val']


def test_unknown_presets_and_choices_are_refused():
    with pytest.raises(ValueError, match='linear has no preset .moco.: its presets are resa, sepp'):
        build_protocol('linear', dict(preset='moco'))
    with pytest.raises(ValueError, match='clustering has no preset .resa.: its presets are none'):
        build_protocol('clustering', dict(preset='resa'))
    with pytest.raises(ValueError, match='linear.schedule must be one of cosine'):
        build_protocol('linear', dict(schedule='step'))
    with pytest.raises(ValueError, match='knn.metric must be one of cosine'):
        build_protocol('knn', dict(metric='dot'))


def train_augmented(rank, world_size, data, work_dir):
    result = run(LinearProtocol(augment=True, **GRID), make_context(data, work_dir))
    knn = run(KNNProtocol(num_neighbors=(1, 5), **FEW), make_context(data, work_dir))
    return result.card, result.scores, knn.scores


def test_two_processes_equal_one(data, tmp_path):
    ((card, scores, knn),) = run_distributed(train_augmented, str(data), str(tmp_path / 'one'), world_size=1)
    for other, other_scores, other_knn in run_distributed(train_augmented, str(data), str(tmp_path / 'two')):
        assert other == card
        assert other_scores == scores
        assert other_knn == knn


def test_batches_that_processes_cannot_share_are_refused(context):
    with pytest.raises(ValueError, match='batch_size=64 must be a multiple of the 1 processes and at most the 27'):
        run(LinearProtocol(augment=True, **dict(GRID, batch_size=64)), context)


class Objects:
    """Dataset with labels only."""

    def __init__(self, identities):
        self.identities = identities

    def __len__(self):
        return len(self.identities)

    def get_data_info(self, index):
        return dict(identity=self.identities[index])


def test_errors_are_over_unseen_objects():
    correct = np.array([True] * 8 + [False] * 8)
    shown = Objects([0] * 8 + [1] * 8)
    assert score_accuracy(correct, shown, Objects([0, 1])).error == pytest.approx(0.125)
    assert score_accuracy(correct, shown, Objects([5])).error == pytest.approx(np.sqrt(1 / 8), rel=0.1)


def test_tries():
    assert score_tries([0.5]).error is None
    assert score_tries([0.4, 0.6]).value == pytest.approx(0.5)
    assert score_tries([0.4, 0.6]).error == pytest.approx(np.sqrt(0.02))
