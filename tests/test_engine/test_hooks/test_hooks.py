import json
import math
import os
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.logging import MessageHub
from mmpretrain.models import BaseClassifier, BaseSelfSupervisor
from testing.toy_training import train

from mm_sop.engine.hooks import (
    BadImageHook,
    CollapseGuardHook,
    DeferredRuntimeInfoHook,
    TeacherHook,
    TeacherTemperatureHook,
    ThroughputHook,
)
from mm_sop.engine.hooks.bad_image_hook import TooManyBadImagesError
from mm_sop.engine.hooks.collapse_guard_hook import CollapseError
from mm_sop.engine.hooks.runtime_info_hook import to_numbers
from mm_sop.functional import cosine_schedule

# Hook methods are called with keyword arguments by MMEngine.
ITERATION = dict(batch_idx=0, data_batch=dict(data_samples=[]))


def read_log(work_dir):
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_teacher_follows_real_steps_only_with_the_cosine_over_steps(work_dir):
    runner = train(work_dir)
    # 21 iterations, two for each step: 10 whole steps and an incomplete one at the very end.
    assert runner.model.momenta == [cosine_schedule(step, 11, 0.9, 1.0) for step in range(11)]


def test_teacher_is_an_average_of_the_updated_student(work_dir):
    runner = train(
        work_dir,
        **{'train_cfg.max_iters': 2, 'custom_hooks': [dict(type='TeacherHook', momentum=0.25)], 'model.dropout': 0.0},
    )
    model = runner.model
    # One step: teacher and student began equal, and AdamW moved the student by its learning rate.
    start = (model.teacher['backbone'].layers[0].weight - 0.75 * model.backbone.layers[0].weight) / 0.25
    moved = (model.backbone.layers[0].weight - start).abs()
    used = moved > 1e-4
    assert used.any()
    assert moved.max() < 0.011
    assert not model.teacher['backbone'].layers[0].weight.equal(model.backbone.layers[0].weight)


def test_temperature_rises_in_each_iteration_and_is_clamped_to_short_runs(work_dir):
    hooks = [dict(type='TeacherTemperatureHook', start=0.04, end=0.07)]
    runner = train(work_dir, **{'custom_hooks': hooks, 'train_cfg.max_iters': 4})
    assert runner.model.temperatures == pytest.approx([0.04, 0.05, 0.06, 0.07])


@pytest.mark.parametrize('build', [
    lambda: TeacherHook(momentum=1.5),
    lambda: TeacherTemperatureHook(start=0.0),
    lambda: TeacherTemperatureHook(warmup_epochs=1, warmup_iters=2),
    lambda: ThroughputHook(max_data_wait=2),
    lambda: BadImageHook(max_fraction=-1),
    lambda: CollapseGuardHook(action='ignore'),
    lambda: CollapseGuardHook(interval=0),
])  # fmt: skip
def test_bad_arguments_are_refused(build):
    with pytest.raises(ValueError, match=r'got|not both'):
        build()


def test_to_numbers_equals_item_for_every_type():
    record = dict(a=torch.tensor(0.1), b=torch.tensor([[1 / 3]], dtype=torch.bfloat16), c=torch.tensor(7), d=2.5)
    (numbers,) = to_numbers([record])
    assert numbers == dict(a=record['a'].item(), b=record['b'].item(), c=7, d=2.5)
    assert isinstance(numbers['c'], int)


def test_deferred_values_are_those_of_mmengine(work_dir):
    hubs = []
    for name, kind in (('ours', DeferredRuntimeInfoHook), ('theirs', RuntimeInfoHook)):
        hooks = {'default_hooks.runtime_info': dict(type=kind.__name__)}
        hubs.append(train(work_dir / name, **hooks, experiment_name=name).message_hub.log_scalars)
    ours, theirs = hubs
    for name in ('loss', 'loss_cls', 'agreement', 'lr', 'base_lr'):
        values, counts = ours[f'train/{name}'].data
        expected_values, expected_counts = theirs[f'train/{name}'].data
        assert values.tolist() == expected_values.tolist()
        assert counts.tolist() == expected_counts.tolist()
    assert len(ours['train/loss'].data[0]) == 21
    assert len(ours['train/grad_norm'].data[0]) == 11


@pytest.mark.parametrize(
    ('kind', 'classes', 'refused'),
    [(BaseClassifier, ('a', 'c'), True), (BaseClassifier, ('a', 'b'), False), (BaseSelfSupervisor, ('a', 'c'), False)],
)
def test_a_classifier_is_validated_on_its_own_classes(kind, classes, refused):
    runner = MagicMock(model=MagicMock(spec=kind))
    runner.train_dataloader.dataset = SimpleNamespace(metainfo=dict(classes=('a', 'b')))
    runner.val_dataloader.dataset = SimpleNamespace(metainfo=dict(classes=classes))
    with pytest.raises(ValueError, match='b only in train, c only in val') if refused else nullcontext():
        DeferredRuntimeInfoHook(interval=1).before_train(runner)


def test_throughput_and_memory_reach_the_log(work_dir):
    train(work_dir)
    last = read_log(work_dir)[-1]
    assert 10 < last['images_per_second'] < 1e6
    assert 0 < last['data_wait'] < 1
    assert 50 < last['memory'] < 100000
    assert {'teacher_momentum', 'teacher_temperature', 'grad_norm', 'loss_cls', 'lr'} <= last.keys()


def throughput_runner(warnings):
    return SimpleNamespace(
        train_loop=SimpleNamespace(data_wait=0.0),
        train_dataloader=SimpleNamespace(num_workers=1),
        message_hub=MessageHub('throughput'),
        logger=SimpleNamespace(warning=warnings.append),
    )


def test_waiting_for_data_is_reported_once_after_the_start(monkeypatch):
    warnings, clock = [], [0.0]
    monkeypatch.setattr('mm_sop.engine.hooks.throughput_hook.perf_counter', lambda: clock[0])
    runner = throughput_runner(warnings)
    hook = ThroughputHook(interval=1, max_data_wait=0.3)
    hook.before_train(runner)
    for wait in (0.9, 0.2, 0.5, 0.5):
        hook.before_train_iter(runner, 0)
        clock[0] += 1 - wait
        runner.train_loop.data_wait += wait
        hook.after_train_iter(runner, batch_idx=0, data_batch=dict(data_samples=[0] * 8))
    values = runner.message_hub.get_scalar('train/data_wait').data[0]
    assert values.tolist() == pytest.approx([0.9, 0.2, 0.5, 0.5])
    assert runner.message_hub.get_scalar('train/images_per_second').current() == pytest.approx(8)
    assert len(warnings) == 1
    assert 'waits for data 50% of the time' in warnings[0]
    assert 'num_workers (now 1' in warnings[0]


BAD = dict(type='SeededDataset', dataset=dict(type='ToyVectors', unreadable=[3, 17]))


def test_bad_images_are_listed_once_and_sorted(work_dir):
    runner = train(work_dir, **{'train_dataloader.dataset': dict(BAD, max_unreadable=0.1)})
    lines = (work_dir / 'bad_images.txt').read_text().splitlines()
    assert lines == ['/images/17.jpg\ttruncated', '/images/3.jpg\ttruncated']
    assert len(runner.message_hub.get_info('bad_images')) == 2


def test_bad_images_with_names_of_any_bytes_do_not_end_the_run(work_dir):
    name = os.fsdecode(b'/images/{}\xe9\t\n\x1b[2J.jpg')
    dataset = dict(BAD, max_unreadable=0.1, dataset=dict(BAD['dataset'], name=name))
    runner = train(work_dir, **{'train_dataloader.dataset': dataset})
    line = b'/images/17\xe9\\t\\n\\x1b[2J.jpg\ttruncated\n'
    assert (work_dir / 'bad_images.txt').read_bytes() == line + line.replace(b'17', b'3')
    known = dict(runner.message_hub.get_info('bad_images'))
    assert known.keys() == {name.format(3), name.format(17)}
    resumed = train(work_dir, **{'train_dataloader.dataset': dataset, 'resume': True, 'train_cfg.max_epochs': 4})
    assert resumed.message_hub.get_info('bad_images') == known
    with pytest.raises(TooManyBadImagesError) as caught:
        # Runs that start within one second would use the same message hub.
        train(
            work_dir / 'other',
            **{'train_dataloader.dataset': dict(dataset, max_unreadable=0), 'experiment_name': 'strict'},
        )
    assert r'\xe9\t\n\x1b[2J.jpg' in str(caught.value)


def test_too_many_bad_images_stop_the_run(work_dir):
    with pytest.raises(TooManyBadImagesError, match=r'of 30 images .* tolerated 1\.00%:\n  /images/'):
        train(work_dir, **{'train_dataloader.dataset': BAD})
    assert '/images/' in (work_dir / 'bad_images.txt').read_text()


def guard_run(values, **options):
    """Warnings of the guard for sequences of values, one for each check."""
    warnings, hub = [], MessageHub('guard')
    runner = SimpleNamespace(iter=0, message_hub=hub, logger=SimpleNamespace(warning=warnings.append))
    hook = CollapseGuardHook(interval=1, begin=0, **options)
    hook.before_train(runner)
    for step in range(max(len(sequence) for sequence in values.values())):
        for name, sequence in values.items():
            hub.update_scalar(f'train/{name}', float(sequence[step]))
        runner.iter = step
        hook.after_train_iter(runner, **ITERATION)
    return warnings


LN_M = math.log(512)


@pytest.mark.parametrize(
    ('values', 'cause', 'remedy'),
    [
        (dict(key_cosine=0.99), 'same embedding for every image', 'KoLeo'),
        (dict(support_cosine=0.995), 'supports are nearly identical', 'num_anchors 512'),
        (dict(loss_cls=LN_M, target_entropy=0.999 * LN_M, max_entropy=LN_M), 'loss stays at ln M', 'temperature'),
        (dict(mean_target_entropy=0.2 * LN_M, max_entropy=LN_M), 'few of the prototypes', 'temperature'),
        (dict(agreement=1 / 512, max_entropy=LN_M), 'by chance', 'augmentation'),
    ],
)
def test_guard_names_cause_and_remedy_after_its_patience(values, cause, remedy):
    assert guard_run({name: [value] * 2 for name, value in values.items()}) == []
    (warning,) = guard_run({name: [value] * 9 for name, value in values.items()})
    assert warning.startswith('Iteration 3: Signs of collapse')
    assert cause in warning
    assert remedy in warning


def test_guard_is_silent_on_a_healthy_run_and_on_unknown_diagnostics():
    healthy = dict(
        key_cosine=0.3, support_cosine=0.9, loss_cls=5.0, target_entropy=4.0, mean_target_entropy=5.5, agreement=0.4
    )
    assert guard_run({name: [value] * 9 for name, value in dict(healthy, max_entropy=LN_M, rank=1).items()}) == []
    assert guard_run(dict(nothing_known=[0.0] * 9)) == []


def test_guard_warns_again_if_a_symptom_returns():
    bad, good = [0.99] * 3, [0.5]
    assert len(guard_run(dict(key_cosine=bad + good + bad))) == 2


def test_guard_reports_non_finite_values_at_once():
    (warning,) = guard_run(dict(loss=[1.0, math.nan]))
    assert warning.startswith('Iteration 2: Not finite: loss')


def test_guard_can_stop():
    with pytest.raises(CollapseError, match='Iteration 2: Signs of collapse'):
        guard_run(dict(key_cosine=[1.0] * 5), action='stop', patience=2)


def test_guard_averages_over_its_interval():
    warnings, hub = [], MessageHub('guard')
    runner = SimpleNamespace(iter=0, message_hub=hub, logger=SimpleNamespace(warning=warnings.append))
    hook = CollapseGuardHook(interval=4, begin=0, patience=1)
    for step, value in enumerate([1.0, 1.0, 1.0, 0.7, 1.0, 1.0, 1.0, 1.0]):
        hub.update_scalar('train/key_cosine', value)
        runner.iter = step
        hook.after_train_iter(runner, **ITERATION)
    assert [warning[:11] for warning in warnings] == ['Iteration 8']
