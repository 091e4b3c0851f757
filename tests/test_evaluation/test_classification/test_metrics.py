"""Validation of self-supervised models in MMEngine's own loop."""

import json

import pytest
import torch
from mmengine.dist import get_dist_info
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner, ValLoop
from mmpretrain.registry import DATASETS, METRICS, MODELS
from mmpretrain.structures import DataSample
from testing import labeled_images
from testing.distributed import run_distributed
from testing.sop_models import build_sop

from mm_sop.functional import effective_rank, knn_scores, rankme

PREPROCESSOR = dict(type='SelfSupDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3)
SIMCLR = dict(
    type='SimCLR',
    data_preprocessor=PREPROCESSOR,
    backbone=dict(type='ResNet', depth=18, stem_channels=4, base_channels=4),
    neck=dict(type='NonLinearNeck', in_channels=32, hid_channels=8, out_channels=8),
    head=dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss')),
)


def features_and_labels(count=15):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    return torch.randn(count, 4, generator=generator) + torch.eye(3, 4)[labels], labels


def evaluate(metric, features, labels, rank=0, world_size=1):
    evaluator = Evaluator(METRICS.build(metric))
    samples = [DataSample().set_gt_label(int(label)) for label in labels[rank::world_size]]
    for sample, feature in zip(samples, features[rank::world_size], strict=True):
        sample.set_data(dict(feature=feature))
    evaluator.process(samples)
    return evaluator.evaluate(len(labels))


def slow_leave_one_out(features, labels, k):
    right = 0
    for row in range(len(features)):
        others = torch.arange(len(features)) != row
        votes = knn_scores(features[others], labels[others], features[row : row + 1], k, num_classes=3)[k]
        right += int(votes.argmax()) == labels[row]
    return 100 * right / len(features)


@pytest.mark.parametrize('k', [1, 5])
def test_every_image_is_classified_by_the_others(k):
    features, labels = features_and_labels()
    # Equal images, more of them than neighbors
    features[9:12] = features[0]
    found = evaluate(dict(type='KNNMetric', num_neighbors=k), features, labels)
    assert found == {'knn/top1': pytest.approx(slow_leave_one_out(features, labels, k))}


def test_the_first_images_vote():
    features, labels = features_and_labels()
    found = evaluate(dict(type='KNNMetric', num_neighbors=3, num_bank=9), features, labels)
    votes = knn_scores(features[:9], labels[:9], features[9:], 3)[3]
    assert found['knn/top1'] == pytest.approx(100 * float((votes.argmax(1) == labels[9:]).float().mean()))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(num_neighbors=15), 'num_neighbors=15, but only 14 of 15 images vote'),
        (dict(num_neighbors=4, num_bank=3), 'num_neighbors=4, but only 3 of 15 images vote'),
        (dict(num_neighbors=3, num_bank=15), 'num_bank=15 of 15 images leaves none to classify'),
        (dict(num_neighbors=3, num_bank=20), 'num_bank=20 of 15 images leaves none to classify'),
        (dict(num_neighbors=0), 'num_neighbors=0 and num_bank=None must be at least 1'),
        (dict(num_bank=0), 'num_bank=0 must be at least 1'),
    ],
)
def test_numbers_that_do_not_fit_the_images(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(dict(type='KNNMetric', **options), *features_and_labels())


def test_all_others_may_vote():
    features, labels = features_and_labels()
    found = evaluate(dict(type='KNNMetric', num_neighbors=14), features, labels)
    assert found['knn/top1'] == pytest.approx(slow_leave_one_out(features, labels, 14))


def test_rank():
    features, labels = features_and_labels()
    found = evaluate(dict(type='RankMetric'), features, labels)
    centered = features - features.mean(0)
    assert found['rank/rankme'] == pytest.approx(rankme(features))
    assert found['rank/effective_rank'] == pytest.approx(effective_rank(centered))


def evaluate_rank(rank, world_size):
    assert get_dist_info() == (rank, world_size)
    return evaluate(dict(type='KNNMetric', num_neighbors=3, num_bank=9), *features_and_labels(), rank, world_size)


def test_two_processes_find_the_same():
    alone = evaluate(dict(type='KNNMetric', num_neighbors=3, num_bank=9), *features_and_labels())
    assert run_distributed(evaluate_rank) == [alone, alone]


def test_what_the_metrics_need():
    features, labels = features_and_labels()
    metric = METRICS.build(dict(type='KNNMetric'))
    with pytest.raises(ValueError, match='KNNMetric needs predictions with `feature`'):
        metric.process({}, [dict(gt_label=1)])
    metric.process({}, [dict(feature=features[0])])
    with pytest.raises(ValueError, match='needs labeled images'):
        metric.compute_metrics(metric.results)


def test_prediction_of_a_teacher():
    model = build_sop().eval()
    images = torch.randn(3, 3, 16, 16)
    samples = model(images, [DataSample(metainfo=dict(number=i)) for i in range(3)], mode='predict')
    assert [sample.number for sample in samples] == [0, 1, 2]
    expected = model.extract_feat(images)[0]
    assert torch.equal(torch.stack([sample.feature for sample in samples]), expected)
    assert len(model(images, mode='predict')) == 3


def test_modes_of_mmpretrain_stay():
    model = MODELS.build(SIMCLR).eval()
    images = torch.randn(2, 3, 32, 32)
    (expected,) = model.backbone(images)
    assert torch.equal(model(images, mode='tensor')[0], expected)
    (sample, _) = model(images, mode='predict')
    torch.testing.assert_close(sample.feature, expected.mean((2, 3))[0])
    with pytest.raises(RuntimeError, match='Invalid mode'):
        model(images, mode='guess')


@DATASETS.register_module(force=True)
class TwoViews(labeled_images.TinyImages):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return dict(sample, inputs=[sample['inputs'], sample['inputs'].flip(2)])


def loader(kind, count):
    return dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type=kind, identities=list(range(6)), count=count, size=32),
        collate_fn=dict(type='default_collate'),
    )


@pytest.mark.parametrize('loop', ['EpochBasedTrainLoop', 'PretrainLoop'])
def test_validation_in_the_ordinary_loop(work_dir, loop):
    runner = Runner(
        model=SIMCLR,
        work_dir=str(work_dir),
        train_dataloader=loader('TwoViews', 8),
        train_cfg=dict(type=loop, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        val_dataloader=loader('TinyImages', 18),
        val_evaluator=[dict(type='KNNMetric', num_neighbors=3), dict(type='RankMetric')],
        val_cfg=dict(),
        default_scope='mmpretrain',
        experiment_name=f'validation_{loop}',
    )
    runner.train()
    assert isinstance(runner.val_loop, ValLoop)
    scalars = [json.loads(line) for line in next(work_dir.glob('*/vis_data/scalars.json')).open()]
    validated = [line for line in scalars if 'knn/top1' in line]
    assert [line['step'] for line in validated] == [1, 2]
    dataset = runner.val_dataloader.dataset
    inputs = runner.model.data_preprocessor(dict(inputs=dataset.images, data_samples=None))['inputs']
    features = runner.model.eval()(inputs, mode='tensor')[0].mean((2, 3)).detach()
    labels = torch.tensor(dataset.identities) % 3
    assert validated[-1]['knn/top1'] == pytest.approx(slow_leave_one_out(features, labels, 3))
    assert validated[-1]['rank/rankme'] == pytest.approx(rankme(features), rel=1e-4)
