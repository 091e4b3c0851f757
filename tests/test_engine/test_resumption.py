import math
import shutil

import pytest
import torch
from mmengine.hooks import Hook
from mmpretrain.models.utils import CosineEMA
from mmpretrain.registry import HOOKS, MODELS
from testing.distributed import reset_global_state, run_distributed
from testing.toy_training import ToyMethod, differences, interrupt, state_of, toy_config, train

from mm_sop.engine import PretrainRunner
from mm_sop.engine.checkpoints import CheckpointError, find_latest
from mm_sop.engine.resumption import translate_position
from mm_sop.evaluation.classification.knn_records import KNNRecords

WARMUP, LR, DECAY = 1, 0.01, 0.04
SCHEDULES = [
    dict(type='LinearLR', start_factor=1e-9, by_epoch=True, begin=0, end=WARMUP, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-4, by_epoch=True, begin=WARMUP, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingParamScheduler',
        param_name='weight_decay',
        eta_min_ratio=10,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
BASE = {
    'param_scheduler': SCHEDULES,
    'optim_wrapper.accumulative_counts': 1,
    'default_hooks.checkpoint.interval': 5,
    'custom_hooks': [
        dict(type='TeacherHook', momentum=0.9),
        dict(type='TeacherTemperatureHook', start=0.04, end=0.07, warmup_epochs=2),
        dict(type='NoteHook'),
    ],
}


@HOOKS.register_module()
class NoteHook(Hook):
    """Records learning rate and weight decays of each iteration."""

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        self.noted = runner.noted = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        groups = runner.optim_wrapper.optimizer.param_groups
        self.noted.append((runner.iter, groups[0]['lr'], *(group['weight_decay'] for group in groups)))


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    """Work directory of a run that was stopped after 10 of 21 iterations: one epoch, and 12 of 30 vectors."""
    reset_global_state()
    work_dir = tmp_path_factory.mktemp('stopped')
    interrupt(work_dir, 10, **BASE)
    return work_dir


def resume(stopped, work_dir, **changes):
    shutil.copytree(stopped, work_dir, dirs_exist_ok=True)
    # `last_checkpoint` names the one in the folder that was copied.
    start = dict(resume=True, load_from=str(find_latest(work_dir)), experiment_name='resumed')
    return train(work_dir, **{**BASE, **start, **changes})


def half_cosine(step, total, start, end):
    return end + (start - end) * (1 + math.cos(math.pi * step / total)) / 2


@pytest.mark.parametrize(
    ('changes', 'length', 'total', 'first'),
    [
        ({'train_cfg.max_epochs': 6}, 7, 42, 10),
        # 12 of 30 vectors are 2 batches of 5, and 2 vectors are seen again.
        ({'train_dataloader.batch_size': 5}, 6, 18, 8),
        ({'train_dataloader.batch_size': 2}, 15, 45, 21),
        # Iterations 10 and 9 would be lost from a step of three.
        ({'optim_wrapper.accumulative_counts': 3}, 7, 21, 9),
        ({'optim_wrapper.optimizer.lr': 0.03, 'optim_wrapper.optimizer.weight_decay': 0.1}, 7, 21, 10),
        ({'train_dataloader.dataset.dataset.size': 50}, 12, 36, 15),
        ({'param_scheduler': [dict(SCHEDULES[0], end=2), dict(SCHEDULES[1], begin=2), SCHEDULES[2]]}, 7, 21, 10),
        ({'train_cfg.max_iters': 16}, 7, 16, 10),
    ],
    ids=['epochs', 'larger batch', 'smaller batch', 'accumulation', 'rate and decay', 'images', 'warm-up', 'shorter'],
)
def test_schedules_are_those_of_an_uninterrupted_run(stopped, work_dir, changes, length, total, first):
    runner = resume(stopped, work_dir, **changes)
    base, decay = (
        changes.get(f'optim_wrapper.optimizer.{name}', default)
        for name, default in (('lr', LR), ('weight_decay', DECAY))
    )
    warmup = changes.get('param_scheduler', SCHEDULES)[0]['end'] * length
    accumulation = changes.get('optim_wrapper.accumulative_counts', 1)
    assert [iteration for iteration, *_ in runner.noted] == list(range(first, total))
    steps = []
    for iteration, rate, decaying, constant in runner.noted:
        expected = base * (1e-9 + (1 - 1e-9) * iteration / (warmup - 1))
        if iteration >= warmup:
            expected = half_cosine(iteration - warmup, total - warmup, base, 1e-4)
        assert rate == pytest.approx(expected, rel=1e-9)
        assert decaying == pytest.approx(half_cosine(iteration, total, decay, 10 * decay), rel=1e-9)
        assert constant == 0
        if (iteration + 1) % accumulation == 0:
            steps.append(half_cosine(iteration // accumulation, -(-total // accumulation), 0.9, 1.0))
    assert runner.model.momenta == pytest.approx(steps, rel=1e-12)
    rise = 2 * length - 1
    temperatures = [0.04 + 0.03 * min(iteration, rise) / rise for iteration in range(first, total)]
    if total == 16:
        temperatures = [0.04 + 0.03 * min(iteration, 13) / 13 for iteration in range(first, total)]
    assert runner.model.temperatures == pytest.approx(temperatures, rel=1e-12)


def test_changes_are_listed_in_one_table(stopped, work_dir, capsys):
    changes = {'train_dataloader.batch_size': 5, 'optim_wrapper.optimizer.lr': 0.03, 'train_cfg.max_epochs': 6}
    resume(
        stopped, work_dir, **changes, **{'model.dropout': 0.2, 'randomness.seed': 8, 'train_dataloader.sampler.seed': 8}
    )
    out, err = capsys.readouterr()
    lines = (out + err).split('Resumed with changed settings:\n')[1].splitlines()
    table = {line.split('  ')[0]: line for line in lines}
    assert '3 epochs, 21 iterations' in table['length'] and '6 epochs, 36 iterations' in table['length']
    assert '0.01' in table['optimizer lr'] and '0.03' in table['optimizer lr'] and 'applied' in table['optimizer lr']
    assert table['batch size'].split()[2:4] == ['4', '5']
    assert table['seed'].split()[1:3] == ['3', '8'] and 'stays 3' in table['seed']
    assert '0.2' in table['model.dropout']
    assert 'iteration 10' in table['position'] and 'iteration 8 of 36' in table['position']
    assert '2 more, seen before, are repeated' in table['position']
    assert not table.keys() & {'optimizer betas', 'optimizer weight_decay', 'num images', 'accumulation'}


def test_unchanged_settings_give_no_table(stopped, work_dir, capsys):
    # The hook that has stopped the run is part of its settings.
    hooks = [*BASE['custom_hooks'], dict(type='StopHook', iteration=10)]
    resume(stopped, work_dir, custom_hooks=hooks)
    assert 'changed settings' not in ''.join(capsys.readouterr())


def test_rate_without_a_schedule_is_applied(work_dir):
    changes = {**BASE, 'param_scheduler': None}
    interrupt(work_dir, 5, **changes)
    changes['optim_wrapper.optimizer.lr'] = 0.002
    runner = train(work_dir, resume=True, experiment_name='resumed', **changes)
    assert {rate for _, rate, *_ in runner.noted} == {0.002}


def test_epoch_continues_with_unseen_images(stopped, work_dir):
    runner = resume(stopped, work_dir, **{'train_dataloader.batch_size': 3, 'train_cfg.max_epochs': 2})
    dataset, sampler = runner.train_dataloader.dataset, runner.train_dataloader.sampler
    sampler.set_epoch(1)
    epoch = [key.index for key in sampler]
    # 12 vectors were seen in batches of 4.
    assert dataset.dataset.loaded == epoch[12:]


def test_another_seed_does_not_change_the_data(stopped, work_dir):
    unchanged = resume(stopped, work_dir / 'same')
    seeds = {'randomness.seed': 8, 'train_dataloader.sampler.seed': 8}
    changed = resume(stopped, work_dir / 'other', **seeds)
    assert differences(state_of(unchanged), state_of(changed)) == []


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    reset_global_state()
    work_dir = tmp_path_factory.mktemp('finished')
    train(work_dir, **BASE)
    return work_dir


def test_finished_run_continues_with_more_epochs(finished, work_dir):
    runner = resume(finished, work_dir, **{'train_cfg.max_epochs': 4})
    assert [iteration for iteration, *_ in runner.noted] == list(range(21, 28))
    rates = [half_cosine(iteration - 7, 21, LR, 1e-4) for iteration in range(21, 28)]
    assert [rate for _, rate, *_ in runner.noted] == pytest.approx(rates, rel=1e-9)


@pytest.mark.parametrize('changes', [{}, {'train_dataloader.batch_size': 2}, {'train_cfg.max_epochs': 2}])
def test_finished_run_reports_that_nothing_is_left(finished, work_dir, capsys, changes):
    runner = resume(finished, work_dir, **changes)
    last = torch.load(finished / 'iter_21.pth', weights_only=False)['state_dict']
    assert runner.noted == []
    assert 'Nothing is left to train' in ''.join(capsys.readouterr())
    assert state_of(runner)['backbone.token'].equal(last['backbone.token'])


def test_knn_records_are_renumbered_and_kept(tmp_path):
    records = KNNRecords(tmp_path)
    for iteration in (None, 0, 15, 30, 45):
        epoch = None if iteration is None else iteration // 15
        record = dict(network='teacher', iter=iteration, epoch=epoch, seconds=1.0, scores={}, iters_per_epoch=15)
        records.add(record)
    # Epochs of 7 iterations instead of 15, from the middle of the third epoch on.
    for _ in range(2):
        resumed = KNNRecords(tmp_path)
        resumed.forget_after(17, iters_per_epoch=7)
        assert [(record['iter'], record['epoch']) for record in resumed] == [(None, None), (0, 0), (7, 1), (14, 2)]


def resume_on_ranks(rank, world_size, folder, changes):
    """Go on from a copy of the run of one process."""
    cfg = toy_config(f'{folder}/{changes["experiment_name"]}', launcher='pytorch', resume=True, **{**BASE, **changes})
    cfg.load_from = f'{folder}/start/iter_10.pth'
    runner = PretrainRunner.from_cfg(cfg)
    runner.train()
    model = runner.model.module
    return runner.noted, model.momenta, {name: value.clone() for name, value in model.state_dict().items()}


def test_twice_the_processes(stopped, tmp_path):
    """With half the batch each they continue the same training; with the whole batch, on the schedules of half as many
    iterations."""
    interrupt(tmp_path / 'start', 10, **{**BASE, 'model.dropout': 0.0})
    reset_global_state()
    one = resume(tmp_path / 'start', tmp_path / 'one', **{'model.dropout': 0.0})
    changes = {'model.dropout': 0.0, 'experiment_name': 'half', 'train_dataloader.batch_size': 2}
    (noted, momenta, weights), _ = run_distributed(resume_on_ranks, str(tmp_path), changes)
    assert noted == one.noted
    assert momenta == one.model.momenta
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)

    changes.update({'experiment_name': 'whole', 'train_dataloader.batch_size': 4})
    for noted, momenta, _ in run_distributed(resume_on_ranks, str(tmp_path), changes):
        # 12 samples of the second epoch are one global batch of 8; an epoch has 3 of them.
        assert [iteration for iteration, *_ in noted] == [4, 5, 6, 7, 8]
        rates = [half_cosine(iteration - 3, 6, LR, 1e-4) for iteration in range(4, 9)]
        assert [rate for _, rate, *_ in noted] == pytest.approx(rates, rel=1e-9)
        assert momenta == pytest.approx([half_cosine(iteration, 9, 0.9, 1.0) for iteration in range(4, 9)])


def slow_position(iteration, before, now):
    """Count samples one by one."""
    batches = [settings['batch_size'] * settings['num_processes'] for settings in (before, now)]
    epoch, seen = 0, 0
    for _ in range(iteration):
        seen += batches[0]
        if seen == before['iters_per_epoch'] * batches[0]:
            epoch, seen = epoch + 1, 0
    position = epoch * now['iters_per_epoch']
    while seen >= batches[1] and position < (epoch + 1) * now['iters_per_epoch']:
        position, seen = position + 1, seen - batches[1]
    while position < now['max_iters'] and position % now['accumulation']:
        position -= 1
    return position


def test_position_equals_that_of_counting():
    generator = torch.Generator().manual_seed(0)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    for _ in range(300):
        settings = []
        for _ in range(2):
            drawn = dict(batch_size=draw(1, 6), num_processes=draw(1, 4), accumulation=draw(1, 4))
            length = max(1, draw(15, 60) // drawn['num_processes'] // drawn['batch_size'])
            settings.append(dict(drawn, iters_per_epoch=length, max_iters=length * draw(1, 5)))
        before, now = settings
        iteration = draw(0, before['max_iters'] + 1)
        assert translate_position(iteration, before, now) == slow_position(iteration, before, now)


def rewrite(work_dir, change):
    """Change the checkpoint that a run will resume from."""
    path = next(iter(work_dir.glob('iter_10.pth')))
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, path)


def make_old(checkpoint):
    """Checkpoints used to hold iterations only."""
    for key in ('settings', 'position'):
        del checkpoint['meta'][key]


def test_older_checkpoints_continue_equally(stopped, tmp_path):
    old = tmp_path / 'old'
    shutil.copytree(stopped, old)
    rewrite(old, make_old)
    changes = {'train_dataloader.batch_size': 5, 'optim_wrapper.optimizer.lr': 0.03, 'train_dataloader.sampler.seed': 8}
    new_format, old_format = (
        resume(source, tmp_path / f'{source.name}_resumed', **changes) for source in (stopped, old)
    )
    assert old_format.noted == new_format.noted
    assert differences(state_of(old_format), state_of(new_format)) == []
    with pytest.raises(CheckpointError, match='parameter groups of the optimizer have changed, from 2'):
        resume(old, tmp_path / 'groups', **{'optim_wrapper.constructor': 'DefaultOptimWrapperConstructor'})


def test_optimizer_state_follows_the_parameters_into_other_groups(stopped, work_dir):
    changes = {'optim_wrapper.constructor': 'DefaultOptimWrapperConstructor', 'train_cfg.max_iters': 10}
    runner = resume(stopped, work_dir, **changes)
    stored = torch.load(stopped / 'iter_10.pth', weights_only=False)
    names = sum(stored['meta']['settings']['parameters'], [])
    state = runner.optim_wrapper.optimizer.state
    parameters = dict(runner.model.named_parameters())
    assert len(state) == len(names) == 5
    for index, name in enumerate(names):
        assert state[parameters[name]]['exp_avg'].equal(stored['optimizer']['state'][index]['exp_avg'])


def test_fast_lars_continues_a_run_of_mmpretrains_lars(tmp_path):
    optimizer = dict(_delete_=True, type='LARS', lr=0.01, momentum=0.9)
    interrupt(tmp_path, 10, **BASE, **{'optim_wrapper.optimizer': optimizer})
    stored = torch.load(tmp_path / 'iter_10.pth', weights_only=False)['optimizer']['state']
    fast = dict(optimizer, type='FastLARS', lr_in_momentum=True, separate_norms=True)
    runner = resume(tmp_path, tmp_path / 'new', **{'optim_wrapper.optimizer': fast, 'train_cfg.max_iters': 10})
    state = runner.optim_wrapper.optimizer.state_dict()['state']
    assert len(state) == len(stored) > 0
    assert all(state[index]['momentum_buffer'].equal(stored[index]['momentum_buffer']) for index in stored)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'optim_wrapper.optimizer.type': 'Adam'}, 'holds the state of AdamW, .* is now Adam'),
        (
            {'optim_wrapper.optimizer.lr': 0.1, 'param_scheduler': [dict(type='ReduceOnPlateauLR')]},
            'follow validation results',
        ),
    ],
)
def test_incompatible_checkpoints_are_refused(stopped, work_dir, changes, message):
    with pytest.raises(CheckpointError, match=message):
        resume(stopped, work_dir, **changes)


@MODELS.register_module()
class CountingMethod(ToyMethod):
    """Moves a target by MMPretrain's cosine over its updates, and writes whole batches into a queue."""

    def __init__(self):
        super().__init__()
        self.target = CosineEMA(self.backbone, momentum=0.1)
        self.register_buffer('queue_ptr', torch.zeros(1, dtype=torch.long))
        self.register_buffer('queue', torch.zeros(40, dtype=torch.long))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'loss':
            self.target.update_parameters(self.backbone)
            start = int(self.queue_ptr)
            self.queue[start : start + len(inputs)] = torch.ones(len(inputs), dtype=torch.long)
            self.queue_ptr[0] = (start + len(inputs)) % 40
        return super().forward(inputs, data_samples, mode)


@pytest.mark.parametrize(('batch_size', 'steps'), [(8, 9), (2, 45)])
def test_counters_of_the_model_follow(work_dir, batch_size, steps):
    changes = {**BASE, 'model': dict(type='CountingMethod')}
    interrupt(work_dir / 'run', 5, **changes)
    assert torch.load(work_dir / 'run/iter_5.pth', weights_only=False)['state_dict']['target.steps'] == 5
    changes['train_dataloader.batch_size'] = batch_size
    runner = train(work_dir / 'run', resume=True, experiment_name='resumed', **changes)
    assert runner.iter == int(runner.model.target.steps) == steps
    assert int(runner.model.queue_ptr) % batch_size == 0
