"""k-NN, linear probe and rank during training, and what they may cost."""

import shutil

import pytest
import torch
from mmengine.dataset import default_collate
from mmpretrain.registry import HOOKS
from testing.distributed import run_distributed
from testing.evaluation_encoders import write_classes
from testing.tiny_training import TinyNetwork, assert_not_affected, idle_runner, tiny_images, train_tiny

from mm_sop.datasets.transforms.evaluation import EvaluationTransform
from mm_sop.engine.hooks import online_evaluation_hook as hook_module
from mm_sop.engine.hooks.online_evaluation_hook import OnlineEvaluationHook
from mm_sop.evaluation.features.queue import FeatureQueue
from mm_sop.functional import knn_scores, rankme


def online_hook(**options):
    defaults = dict(interval=2, batch_size=6, queue_size=12, num_neighbors=3, max_fraction=0.99)
    datasets = dict(bank=tiny_images(18, 1), queries=tiny_images(12, 2))
    return datasets | defaults | dict(options, type='OnlineEvaluationHook')


def train(work_dir, hooks):
    """Run 10 iterations."""
    return train_tiny(work_dir, hooks, images=20)


def find_hook(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, OnlineEvaluationHook))


def test_training_is_not_affected(work_dir):
    with_hook = train(work_dir, [online_hook()])
    without = train(work_dir.parent / 'without', [])
    assert_not_affected(with_hook, without)
    log = next(work_dir.glob('*/*.log')).read_text()
    assert 'Online evaluation at iteration 2: k-NN ' in log
    assert 'on the last 6 features' in log and 'on the last 12 features' in log and '% of the run, next in ' in log
    assert with_hook.message_hub.get_scalar('online/rankme').current() > 1


def test_values_are_those_of_the_queues(work_dir):
    hook = find_hook(train(work_dir, [online_hook()]))
    bank, queries = hook.queues['bank'], hook.queues['queries']
    assert (len(bank), len(queries)) == (12, 12)
    values = hook.measure()
    votes = knn_scores(bank.features, bank.labels, queries.features, 3, num_classes=3)[3]
    assert values['online/knn'] == pytest.approx(float((votes.argmax(1) == queries.labels).float().mean()))
    assert values['online/rankme'] == pytest.approx(rankme(bank.features))


@pytest.mark.learning
def test_linear_probe_separates_what_can_be_separated(seed, expect):
    hook = HOOKS.build(online_hook(queue_size=150))
    generator = torch.Generator().manual_seed(seed)
    for queue in hook.queues.values():
        labels = torch.arange(150) % 3
        # Three directions tell the class, ten stronger ones tell nothing.
        features = torch.randn(150, 13, generator=generator) * torch.tensor([0.05] * 3 + [5.0] * 10)
        queue.push(features + torch.eye(3, 13)[labels], labels)
    values = hook.measure()
    expect('linear probe', values['online/linear'], above=0.9)
    expect('k-NN', values['online/knn'], below=0.75)


class Clock:
    """Seconds that pass only when something is done."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def simulate(monkeypatch, cost, step, iterations=2000, **options):
    """Iterations of visits of a hook with visits of this cost, and its fraction of the time after each."""
    clock = Clock()
    monkeypatch.setattr(hook_module.time, 'perf_counter', clock)

    def measure(self):
        clock.now += cost(len(visits))
        return {'online/knn': 0.0, 'online/linear': 0.0, 'online/rankme': 1.0}

    monkeypatch.setattr(OnlineEvaluationHook, 'measure', measure)
    hook = HOOKS.build(online_hook(**options))
    runner = idle_runner(model=TinyNetwork())
    hook.before_train(runner)
    visits, fractions = [], []
    for runner.iter in range(iterations):
        clock.now += step
        before = hook.spent
        hook.after_train_iter(runner, runner.iter)
        if hook.spent > before:
            visits.append(runner.iter + 1)
            fractions.append(hook.spent / (clock.now - hook.started))
    return visits, fractions


def test_cheap_evaluations_keep_the_interval(monkeypatch):
    visits, fractions = simulate(monkeypatch, lambda number: 0.1, 1.0, 200, interval=20, max_fraction=0.05)
    assert visits == list(range(20, 201, 20))
    assert max(fractions) < 0.05


@pytest.mark.parametrize('cost', [lambda number: 5.0, lambda number: 30.0 if number == 3 else 2.0])
def test_expensive_evaluations_are_spread(monkeypatch, cost):
    visits, fractions = simulate(monkeypatch, cost, 0.5, 6000, interval=20, max_fraction=0.05)
    assert len(visits) > 5
    late = [fraction for visit, fraction in zip(visits, fractions, strict=True) if visit > 200]
    # An evaluation that costs more than the previous one is compensated afterwards.
    assert sum(fraction > 0.0501 for fraction in late) <= 1
    assert fractions[-1] > 0.03


def push_all(queue, values):
    for part in values.split(4):
        queue.push(part[:, None].float(), part)


@pytest.mark.parametrize('size', [3, 4, 6, 10])
def test_queue_keeps_the_newest(size):
    queue = FeatureQueue(size)
    assert len(queue) == 0
    push_all(queue, torch.arange(22))
    assert queue.labels.tolist() == list(range(22 - size, 22))
    assert torch.equal(queue.features[:, 0].long(), queue.labels)


def visit(rank, world_size, differing=False):
    torch.manual_seed(0)
    hook = HOOKS.build(online_hook(batch_size=6 // world_size))
    runner = idle_runner(model=TinyNetwork())
    runner.model.backbone[1].running_mean.add_(rank * differing)
    hook.before_train(runner)
    for runner.iter in (1, 3):
        hook._evaluate(runner)
    hook.release(runner)
    return hook.queues['bank'].labels, hook.queues['bank'].features, hook.measure(), hook.next_iter


def test_two_processes_share_the_queue():
    (labels, features, values, next_iter), second = run_distributed(visit)
    assert torch.equal(labels, second[0]) and torch.equal(features, second[1])
    assert (values, next_iter) == second[2:]
    assert len(labels) == 12


def test_processes_evaluate_the_network_of_the_checkpoint():
    (_, features, *_), _ = run_distributed(visit)
    (_, others, *_), _ = run_distributed(visit, True)
    assert torch.equal(features, others)


@pytest.mark.parametrize('options', [dict(interval=0), dict(max_fraction=0.0), dict(max_fraction=1.0)])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match='expected interval >= 1 and max_fraction'):
        HOOKS.build(online_hook(**options))


@pytest.mark.parametrize(
    ('queries', 'message'),
    [
        (dict(), 'bank and queries have different classes: green only in bank'),
        (dict(metainfo=dict(classes=('blue', 'green', 'red'))), None),
    ],
)
def test_queries_that_lack_a_class(tmp_path, queries, message):
    steps = EvaluationTransform(32).steps
    write_classes(tmp_path / 'bank', 4)
    # Number 1 among the queries is number 2 in the bank.
    write_classes(tmp_path / 'queries', 4, seed=1)
    shutil.rmtree(tmp_path / 'queries/green')
    bank, queries = (
        dict(type='LabeledImages', data_root=str(tmp_path / name), pipeline=steps, **options)
        for name, options in (('bank', {}), ('queries', queries))
    )
    if message:
        with pytest.raises(ValueError, match=message):
            HOOKS.build(online_hook(bank=bank, queries=queries))
        return
    hook = HOOKS.build(online_hook(bank=bank, queries=queries, num_neighbors=1))
    for name, queue in hook.queues.items():
        batch = default_collate([hook.datasets[name][row] for row in range(len(hook.datasets[name]))])
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
        queue.push(batch['inputs'].float().mean((2, 3)) - 100, labels)
    values = hook.measure()
    assert values['online/knn'] == values['online/linear'] == 1


def test_queries_without_labels():
    with pytest.raises(ValueError, match='images of queries have no gt_label'):
        HOOKS.build(online_hook(queries=dict(tiny_images(4, 0), known=())))
    with pytest.raises(ValueError, match='0 images of bank cannot be distributed over 1 processes'):
        HOOKS.build(online_hook(bank=tiny_images(0, 0)))


def test_bad_queue():
    with pytest.raises(ValueError, match='must be at least 1, got 0'):
        FeatureQueue(0)
