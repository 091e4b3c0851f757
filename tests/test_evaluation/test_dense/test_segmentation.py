import pytest
import torch
from mmengine.evaluator import Evaluator
from mmpretrain.registry import METRICS
from testing.distributed import run_distributed

from mm_sop.evaluation.dense.segmentation import format_classes

CLASSES = ('sky', 'sea', 'sand')


def make_samples():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 3, (2, 5, 4, 6), generator=generator)
    maps[1, 0, 0] = 255
    return [
        dict(pred_sem_seg=dict(sem_seg=prediction[None]), gt_sem_seg=dict(sem_seg=target[None]))
        for prediction, target in zip(*maps, strict=True)
    ]


def evaluate(rank, world_size):
    evaluator = Evaluator(METRICS.build(dict(type='SegmentationMetric', classwise=True)))
    evaluator.dataset_meta = dict(classes=CLASSES)
    samples = make_samples()
    # As a sampler does, the processes fill up with the first sample again.
    own = (samples + samples[: -len(samples) % world_size])[rank::world_size]
    evaluator.process(own)
    return evaluator.evaluate(len(samples))


def test_scores_of_a_dataset():
    metrics = evaluate(0, 1)
    samples = make_samples()
    prediction = torch.cat([sample['pred_sem_seg']['sem_seg'].flatten() for sample in samples])
    target = torch.cat([sample['gt_sem_seg']['sem_seg'].flatten() for sample in samples])
    prediction, target = prediction[target != 255], target[target != 255]
    both = [((prediction == label) & (target == label)).sum() for label in range(3)]
    either = [((prediction == label) | (target == label)).sum() for label in range(3)]
    iou = [100 * float(a / b) for a, b in zip(both, either, strict=True)]
    assert metrics['mIoU'] == pytest.approx(sum(iou) / 3)
    assert [metrics[f'IoU_{name}'] for name in CLASSES] == pytest.approx(iou)
    assert metrics['aAcc'] == pytest.approx(100 * (prediction == target).double().mean().item())
    recall = [float(a / (target == label).sum()) for label, a in enumerate(both)]
    assert metrics['mAcc'] == pytest.approx(100 * sum(recall) / 3)


def test_classes_are_listed_from_the_best():
    iou, accuracy = torch.tensor([12.0, torch.nan, 50.25]), torch.tensor([20.0, torch.nan, 60.0])
    assert format_classes(CLASSES, iou, accuracy).split() == [
        'sand', '50.25', '60.00', 'sky', '12.00', '20.00', 'sea', 'nan', 'nan'
    ]  # fmt: skip


def test_two_processes_give_what_one_gives():
    first, second = run_distributed(evaluate)
    assert first == second == evaluate(0, 1)
