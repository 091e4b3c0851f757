import json
import re

import pytest
import torch
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from testing.distributed import run_distributed
from testing.tiny_training import TinyNetwork, assert_not_affected, idle_runner, tiny_images, train_tiny

from mm_sop.engine.hooks.knn_hook import KNNHook

SCORES = [f'{name}_k{k}' for name in ('seen_class', 'seen_identity', 'unseen_class') for k in (1, 5)]


@HOOKS.register_module(force=True)
class MoveTeacher(Hook):
    def after_train_iter(self, runner, *args, **kwargs):
        runner.model.teacher[0].weight.add_(0.1)


def knn_hook(**kwargs):
    queries = dict(seen=tiny_images(12, 2), unseen=tiny_images(9, 3, range(6, 9)))
    defaults = dict(interval=2, by_epoch=False, num_neighbors=(5, 1))
    return dict(type='KNNHook', bank=tiny_images(18, 1), queries=queries, **(defaults | kwargs))


def train(work_dir, *hooks, **options):
    """Run 5 iterations an epoch."""
    return train_tiny(work_dir, [dict(type='MoveTeacher'), *hooks], has_teacher=True, **options)


def read_records(work_dir):
    return json.loads((work_dir / 'knn.json').read_text())


def test_a_run_with_evaluation(work_dir):
    """Training is the same with and without the hook; records, table, scalars and log are complete."""
    with_hook = train(work_dir, knn_hook(readouts=('global', 'patch')))
    without = train(work_dir.parent / 'without')
    assert_not_affected(with_hook, without)

    records = read_records(work_dir)
    assert [(record['network'], record['iter']) for record in records] == [
        ('raw_pixels', None), ('color_histogram', None), *[('teacher', step) for step in (0, 2, 4, 5)]
    ]  # fmt: skip
    assert sorted(records[0]['scores']) == sorted(SCORES)
    assert sorted(records[-1]['scores']) == sorted(SCORES + [f'{name}_patch' for name in SCORES])
    accuracies = [record['scores']['seen_identity_k1']['accuracy'] for record in records]
    assert accuracies[0] == 1  # noise is small: the nearest image shows the same object

    table = re.sub(' +', ' ', (work_dir / 'knn.md').read_text()).splitlines()
    assert '| features | iteration |' in table[2] and 'seen identity, k = 1 |' in table[2]
    assert table[4].startswith('| raw 16 x 16 pixels | |') and '100.0 ± 0.0' in table[4]
    assert table[6].startswith('| teacher, untrained | 0 |') and table[9].startswith('| teacher | 5 |')

    scalars = [json.loads(line) for line in next(work_dir.glob('*/vis_data/scalars.json')).open()]
    logged = {line['step']: line['knn/seen_class_k5'] for line in scalars if 'knn/seen_class_k5' in line}
    assert logged == {record['iter']: record['scores']['seen_class_k5']['accuracy'] for record in records[2:]}
    history = with_hook.message_hub.get_scalar('knn/seen_class_k5')
    assert history.current() == logged[5]

    log = next(work_dir.glob('*/*.log')).read_text()
    assert 'k-NN at iteration 4, teacher, k=5, in %: seen_class ' in log
    assert '| raw 16 x 16 pixels: seen_class ' in log and '% of the run)' in log


def test_the_current_teacher_is_measured(work_dir):
    runner = train(work_dir, knn_hook(baselines=False))
    hook = next(hook for hook in runner.hooks if isinstance(hook, KNNHook))
    record = read_records(work_dir)[-1]
    before = len(hook.records.records)
    hook._evaluate(runner, 5, 1)
    assert len(hook.records.records) == before
    again = read_records(work_dir)[-1]
    assert record['scores'] == again['scores']


def test_resuming_drops_only_what_is_repeated(work_dir):
    checkpoint = dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)))
    train(work_dir, knn_hook(), max_epochs=2, **checkpoint)
    first = read_records(work_dir)
    steps = [record['iter'] for record in first]
    assert steps == [None, None, 0, 2, 4, 6, 8, 10]
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))
    train(work_dir, knn_hook(), max_epochs=2, resume=True, **checkpoint)
    second = read_records(work_dir)
    assert [record['iter'] for record in second] == steps
    for old, new in zip(first, second, strict=True):
        assert old['seconds'] == new['seconds'] or new['iter'] > 5
    train(work_dir, knn_hook(baselines=False), max_epochs=1)
    assert [record['iter'] for record in read_records(work_dir)] == [0, 2, 4, 5]


def test_by_epoch(work_dir):
    train(work_dir, knn_hook(by_epoch=True, interval=2, baselines=False), max_epochs=3)
    records = read_records(work_dir)
    assert [(record['iter'], record['epoch']) for record in records] == [(0, 0), (10, 2), (15, 3)]


def test_models_without_teacher(work_dir):
    train_tiny(work_dir, [knn_hook(interval=5, baselines=False)])
    assert {record['network'] for record in read_records(work_dir)} == {'backbone'}


def evaluate_at_start(rank, world_size, work_dir):
    """Run the hook without a loop; only the main process has a work directory."""
    folder = work_dir if rank == 0 else f'{work_dir}/missing'
    runner = idle_runner(model=TinyNetwork(has_teacher=True), train_dataloader=range(7), work_dir=folder)
    # Without SyncBN every process has statistics of its own; those of the main one are in the checkpoint.
    runner.model.teacher[1].running_mean.add_(rank)
    hook = HOOKS.build(knn_hook())
    hook.before_train(runner)
    hook.after_train(runner)
    return [{**record, 'seconds': None} for record in hook.records]


def test_two_processes_keep_one_record(work_dir):
    first, second = run_distributed(evaluate_at_start, str(work_dir))
    written = [{**record, 'seconds': None} for record in read_records(work_dir)]
    assert first == second == written
    assert [record['iter'] for record in written] == [None, None, 0]
    alone = work_dir / 'alone'
    alone.mkdir()
    torch.manual_seed(0)
    assert evaluate_at_start(0, 1, str(alone)) == first


def test_bad_arguments():
    with pytest.raises(ValueError, match='interval of KNNHook must be at least 1, got 0'):
        HOOKS.build(knn_hook(interval=0))
