"""PretrainRunner: what it adds to MMEngine's Runner, and that every entry point trains the same."""

import math
import os
import subprocess
import sys

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from testing.scripts import run_script, script_of
from testing.toy_training import differences, state_of, toy_config, train
from torch import nn

from mm_sop.engine import PretrainRunner
from mm_sop.engine import runner as running
from mm_sop.engine.checkpoints import CheckpointError
from mm_sop.engine.launch import launch, set_seed
from mm_sop.engine.runner import pace_averaged_models, resolve_resume, separate_norms, set_default_seed
from mm_sop.report.run_log import read_scalars
from mm_sop.utils.failures import LaunchError
from mm_sop.utils.folder_lock import lock_folder

BLOCKS = dict(pattern='backbone.layers.*', backend='eager')

# Everything that the runner completes, in a run that ends within the second of three epochs.
COMPLETED = dict(
    auto_scale_lr=dict(base_batch_size=16, enable=True),
    compile_blocks=BLOCKS,
    activation_checkpointing=['backbone.layers.*'],
    log_level='INFO',
    **{'train_cfg.max_iters': 10, 'train_dataloader.persistent_workers': True, 'default_hooks.logger.interval': 2},
)
TIMINGS = ('time', 'data_time', 'images_per_second', 'data_wait', 'memory')


def result_of(work_dir):
    """Weights, optimizer state and random state at the end of a run, and its logged values but for the timings."""
    checkpoint = torch.load((work_dir / 'last_checkpoint').read_text(), weights_only=False)
    state = dict(checkpoint['state_dict'])
    for index, values in checkpoint['optimizer']['state'].items():
        state.update({f'optimizer.{index}.{key}': value for key, value in values.items()})
    scalars = read_scalars(work_dir)
    return state, {name: values for name, values in scalars.items() if name not in TIMINGS}


@pytest.fixture(scope='module')
def completed(tmp_path_factory):
    """Config file, and result of the run that the registry builds from it."""
    folder = tmp_path_factory.mktemp('completed')
    cfg = toy_config(folder / 'registry', **COMPLETED)
    cfg.dump(folder / 'toy.py')
    RUNNERS.build(cfg).train()
    return folder / 'toy.py', result_of(folder / 'registry')


@pytest.mark.parametrize('package', ['mm_sop', 'mmpretrain', 'mmdet'])
def test_every_entry_point_trains_the_same(work_dir, completed, package):
    config, (expected_state, expected_scalars) = completed
    run_script(script_of(package), config, '--work-dir', work_dir)
    state, scalars = result_of(work_dir)
    assert differences(state, expected_state) == []
    assert scalars == expected_scalars
    # 0.01 for a batch of 16 becomes 0.005 for two accumulated batches of 4. The cosine ends with the run.
    steps, rates = scalars['lr']
    assert steps == [2, 4, 6, 9]
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * (step - 1) / 10)) / 2 for step in steps])


def test_mmpretrain_resumes_a_run_of_mmengines_runner(work_dir):
    straight = state_of(train(work_dir / 'straight', experiment_name='straight'))
    cfg = toy_config(work_dir, experiment_name='first')
    cfg.custom_hooks.append(dict(type='StopHook', iteration=10))
    cfg.pop('runner_type')
    with pytest.raises(KeyboardInterrupt):
        Runner.from_cfg(cfg).train()
    toy_config('unused').dump(work_dir / 'toy.py')
    run_script(script_of('mmpretrain'), work_dir / 'toy.py', '--work-dir', work_dir, '--resume')
    state, _ = result_of(work_dir)
    assert differences(state, {name: straight[name] for name in state}) == []


def test_a_folder_in_use_is_refused_whatever_starts_the_run(work_dir):
    runner = PretrainRunner.from_cfg(toy_config(work_dir))
    with lock_folder(work_dir), pytest.raises(LaunchError, match='is in use by process'):
        runner.train()


def test_two_processes_without_cuda_through_the_script_of_mmpretrain(repository, work_dir):
    changes = {'model.dropout': 0.0, 'train_cfg.max_iters': 4, 'train_dataloader.batch_size': 2}
    toy_config('unused', **changes).dump(work_dir / 'toy.py')
    environment = dict(
        os.environ, PYTHONPATH=f'{repository}{os.pathsep}{repository / "tests"}', CUDA_VISIBLE_DEVICES=''
    )
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--local-addr=127.0.0.1']
    command += ['--nproc-per-node=2', script_of('mmpretrain'), work_dir / 'toy.py']
    command += ['--work-dir', work_dir / 'two', '--launcher', 'pytorch']
    finished = subprocess.run(command, env=environment, timeout=540, capture_output=True, text=True)
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-5000:]
    one = train(work_dir / 'one', **changes | {'train_dataloader.batch_size': 4}).model.state_dict()
    for name, value in result_of(work_dir / 'two')[0].items():
        if name in one:
            torch.testing.assert_close(value, one[name], rtol=1e-5, atol=1e-6)


def test_learning_rate_is_scaled_to_the_global_batch_with_accumulation(work_dir, capsys):
    cfg = toy_config(work_dir, auto_scale_lr=dict(base_batch_size=16, enable=True), log_level='INFO')
    runner = PretrainRunner.from_cfg(cfg)
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    line = 'Learning rate 0.005 = 0.01 x 8 / 16; global batch 8 = 4 images x 1 processes x 2 accumulated'
    assert line in capsys.readouterr().out
    runner.scale_lr(wrapper, runner.auto_scale_lr)
    assert wrapper.optimizer.param_groups[0]['lr'] == 0.005
    assert runner.cfg.optim_wrapper.optimizer.lr == 0.01


def test_learning_rate_stays_without_scaling(work_dir):
    runner = PretrainRunner.from_cfg(toy_config(work_dir, auto_scale_lr=dict(base_batch_size=16)))
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    assert wrapper.optimizer.param_groups[0]['lr'] == 0.01


def test_scaled_rate_is_used_in_training(work_dir):
    cfg = toy_config('unused', auto_scale_lr=dict(base_batch_size=16, enable=True))
    runner = launch(cfg, str(work_dir))
    last = 0.005 * (1 + math.cos(math.pi * 20 / 21)) / 2
    assert runner.optim_wrapper.optimizer.param_groups[0]['lr'] == pytest.approx(last)


WARMUP = dict(type='LinearLR', start_factor=1e-9, by_epoch=True, begin=0, end=2, convert_to_iter_based=True)
COSINE = dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=2, convert_to_iter_based=True)


def rates_of(work_dir, max_iters):
    cfg = toy_config(work_dir, **{'train_cfg.max_iters': max_iters})
    cfg.param_scheduler = [WARMUP, COSINE]
    runner = launch(cfg, str(work_dir))
    return runner.message_hub.get_scalar('train/lr').data[0].tolist()


def test_schedules_of_a_whole_run_are_those_of_mmengine(work_dir):
    cfg = toy_config(work_dir / 'theirs')
    cfg.param_scheduler = [WARMUP, COSINE]
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert rates_of(work_dir / 'ours', 21) == runner.message_hub.get_scalar('train/lr').data[0].tolist()


def test_schedules_end_with_a_truncated_run(work_dir):
    rates = rates_of(work_dir, 18)
    assert rates[13] == rates[14] == pytest.approx(0.01)
    expected = [0.01 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert rates[14:] == pytest.approx(expected)


def test_runs_shorter_than_the_warm_up_consist_of_it(work_dir, capsys):
    assert rates_of(work_dir, 5) == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01], abs=1e-9)
    assert 'CosineAnnealingLR is left out: it would begin at iteration 14 of 5' in capsys.readouterr().out


def test_schedules_in_iterations_stay(work_dir):
    cfg = toy_config(work_dir)
    cfg.param_scheduler = [dict(type='LinearLR', by_epoch=False, end=100)]
    runner = train(work_dir, param_scheduler=cfg.param_scheduler)
    (scheduler,) = runner.param_schedulers
    assert (scheduler.by_epoch, scheduler.end) == (False, 100)


@pytest.mark.parametrize(('accumulation', 'moved'), [(1, [1, 2, 3, 4, 5]), (3, [3])])
def test_targets_move_once_in_a_step_of_the_optimizer(accumulation, moved):
    model = nn.ModuleDict(dict(online=nn.Linear(1, 1)))
    model['target'] = ExponentialMovingAverage(model['online'], momentum=0.5)
    pace_averaged_models(model, accumulation)
    changes = []
    for iteration in range(6):
        before = model['target'].module.weight.item()
        nn.init.constant_(model['online'].weight, before + iteration)
        model['target'].update_parameters(model['online'])
        changes.append(model['target'].module.weight.item() != before)
    assert [iteration for iteration, changed in enumerate(changes) if changed] == moved


def test_norms_that_cannot_be_synchronized_are_separated(capsys):
    synchronized = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), nn.Linear(4, 4))
    before = dict(synchronized.named_parameters())
    model = separate_norms(synchronized)
    images = torch.randn(5, 3, 2, 2)
    expected = nn.functional.batch_norm(model[0](images), None, None, training=True)
    torch.testing.assert_close(model[:2](images), expected)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(before[name] is value for name, value in after.items())
    assert '1 SyncBN became BatchNorm' in capsys.readouterr().out


def test_norms_stay_synchronized_with_cuda(work_dir, monkeypatch):
    runner = PretrainRunner.from_cfg(toy_config(work_dir))
    monkeypatch.setattr(Runner, 'wrap_model', lambda self, wrapper_cfg, model: model)
    for has_cuda, kind in ((True, nn.SyncBatchNorm), (False, nn.modules.batchnorm._BatchNorm)):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda has_cuda=has_cuda: has_cuda)
        norm = runner.wrap_model(None, nn.SyncBatchNorm(4))
        assert isinstance(norm, kind) and isinstance(norm, nn.SyncBatchNorm) == has_cuda


def test_compiled_and_recomputed_blocks_change_nothing(work_dir):
    plain = launch(toy_config('unused'), str(work_dir / 'plain'))
    changes = dict(compile_blocks=BLOCKS, activation_checkpointing=['backbone.layers.*'], experiment_name='fast')
    fast = launch(toy_config('unused', **changes), str(work_dir / 'fast'))
    model = fast.model
    assert all('forward' in vars(layer) for layer in model.backbone.layers)
    assert all(layer._compiled_call_impl for layer in (*model.backbone.layers, *model.teacher['backbone'].layers))
    assert model.backbone._compiled_call_impl is None
    assert plain.model.state_dict().keys() == model.state_dict().keys()
    assert differences(state_of(plain), state_of(fast)) == []


@pytest.mark.parametrize('key', ['compile_blocks', 'activation_checkpointing'])
def test_pattern_without_a_module_is_refused(work_dir, key):
    value = dict(compile_blocks=dict(pattern='neck.*'), activation_checkpointing=['neck.*'])[key]
    with pytest.raises(ValueError, match=rf"{key}.*no module of the model is called 'neck\.\*'"):
        launch(toy_config('unused', **{key: value}), str(work_dir))


@pytest.mark.parametrize(('given', 'expected'), [(None, 3), (7, 7), (0, 0)])
def test_seed_reaches_runner_and_sampler(work_dir, given, expected):
    cfg = toy_config(work_dir)
    del cfg.train_dataloader.sampler['seed']
    if given is not None:
        set_seed(cfg, given)
    set_default_seed(cfg)
    assert cfg.randomness == dict(seed=expected, diff_rank_seed=True)
    assert cfg.train_dataloader.sampler.seed == expected


def test_seed_is_always_set(work_dir):
    cfg = toy_config(work_dir)
    with pytest.raises(LaunchError, match='--seed -1: expected 0 or more'):
        set_seed(cfg, -1)
    del cfg.train_dataloader.sampler['seed']
    cfg.randomness = dict(seed=None)
    set_default_seed(cfg)
    assert cfg.randomness.seed == cfg.train_dataloader.sampler.seed == 0


def test_resuming_leaves_other_initializations_alone(work_dir, monkeypatch):
    monkeypatch.setattr(running, 'check_resumable', lambda path: None)
    initialization = [dict(type='Kaiming', layer='Conv2d')]
    cfg = toy_config(work_dir, resume=True, load_from=str(work_dir / 'iter_1.pth'))
    cfg.model.init_cfg = initialization
    resolve_resume(cfg)
    assert cfg.resume and cfg.model.init_cfg == initialization


def test_resume_starts_from_the_beginning_without_a_checkpoint_and_refuses_damage(work_dir, capsys):
    cfg = toy_config(work_dir, resume=True)
    resolve_resume(cfg)
    assert not cfg.resume
    assert f'No checkpoint in {work_dir}: training starts from the beginning' in capsys.readouterr().out
    (work_dir / 'iter_4.pth').write_bytes(b'')
    cfg.resume = True
    with pytest.raises(CheckpointError, match=r'iter_4\.pth: it is empty'):
        resolve_resume(cfg)
    cfg.load_from = str(work_dir / 'other.pth')
    with pytest.raises(CheckpointError, match=r'other\.pth: there is no such file'):
        resolve_resume(cfg)
