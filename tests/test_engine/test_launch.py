from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from torch import nn
from toy_training import differences, state_of, toy_config

from mm_sop.engine import launch as launching
from mm_sop.engine.checkpoints import CheckpointError
from mm_sop.engine.launch import LaunchError, launch


@pytest.fixture
def unscaled(work_dir):
    return toy_config(work_dir)


def test_unknown_config_suggests_close_names(repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(LaunchError, match=r'no config configs/sop/vit_b\.py; did you mean .*configs/sop/vitb\.py'):
        launch('configs/sop/vit_b.py')
    with pytest.raises(LaunchError, match='no config zzz$'):
        launch('zzz')


def test_broken_config_is_named(tmp_path):
    path = tmp_path / 'broken.py'
    path.write_text('model = dict(')
    with pytest.raises(LaunchError, match=r'cannot read the config .*broken\.py'):
        launch(path)


def test_options_are_merged_and_slips_are_pointed_out(unscaled, capsys):
    launching.merge_options(unscaled, {'optim_wrapper.optimizer.lr': 0.5, 'train_dataloader.batchsize': 2})
    assert unscaled.optim_wrapper.optimizer.lr == 0.5
    output = capsys.readouterr().out
    assert (
        "--cfg-options train_dataloader.batchsize: 'batchsize' is new in the config; did you mean 'batch_size'"
        in output
    )
    assert 'optimizer.lr' not in output


def test_options_that_do_not_fit_are_refused(unscaled):
    with pytest.raises(LaunchError, match=r'--cfg-options custom_hooks\.9\.type=x does not fit'):
        launching.merge_options(unscaled, {'custom_hooks.9.type': 'x'})


def test_resuming_leaves_other_initialisations_alone(unscaled, work_dir, monkeypatch):
    monkeypatch.setattr(launching, 'check_resumable', lambda path: None)
    unscaled.model.init_cfg = [dict(type='Kaiming', layer='Conv2d')]
    launching.set_resume(unscaled, str(work_dir / 'iter_1.pth'))
    assert unscaled.resume and unscaled.model.init_cfg == [dict(type='Kaiming', layer='Conv2d')]


def test_labelled_pictures_of_knn_are_asked_for_at_the_door(repository, pictures, work_dir):
    config = Config.fromfile(repository / 'configs/sop/quickstart.py')
    root = f'{work_dir}/classes/bank'
    launching.merge_options(config, {'custom_hooks.1.bank.data_root': root})
    assert config.custom_hooks[1].type == 'KNNHook'
    with pytest.raises(LaunchError, match=rf'no labelled pictures for k-NN: {root}.*custom_hooks\.1'):
        launching.launch(config, str(work_dir), data=str(pictures))


def test_variables_of_the_config_are_refused(repository):
    config = Config.fromfile(repository / 'configs/co_ssl/byol_r18_composites.py')
    dataset = 'train_dataloader.dataset.dataset'
    copies = {
        'teacher_hook.momentum': 'custom_hooks.0.momentum',
        'view_pipeline.0.scale': f'{dataset}.pipeline.1.transforms.0.0.scale',
        'data_root': f'{dataset}.data_root',
    }
    for key, place in copies.items():
        with pytest.raises(LaunchError, match=f'{key} would change nothing.*Change {place}$'):
            launching.merge_options(config, {key: 'x'})
    launching.merge_options(config, {'custom_hooks.0.momentum': 0.9, 'notes.author': 'me'})
    assert config.custom_hooks[0].momentum == 0.9


@pytest.mark.parametrize(('given', 'expected'), [(None, 3), (7, 7), (0, 0)])
def test_seed_reaches_runner_and_sampler(unscaled, given, expected):
    del unscaled.train_dataloader.sampler['seed']
    launching.set_seed(unscaled, given)
    assert unscaled.randomness == dict(seed=expected, diff_rank_seed=True)
    assert unscaled.train_dataloader.sampler.seed == expected


def test_seed_is_always_set(unscaled):
    with pytest.raises(LaunchError, match='--seed -1: expected 0 or more'):
        launching.set_seed(unscaled, -1)
    del unscaled.train_dataloader.sampler['seed']
    unscaled.randomness = dict(seed=None)
    launching.set_seed(unscaled, None)
    assert unscaled.randomness.seed == unscaled.train_dataloader.sampler.seed == 0


def pretraining_config(dataset):
    model = dict(type='MoCo')
    return Config(dict(default_scope='mmpretrain', model=model, train_dataloader=dict(dataset=dataset)))


def test_data_folder_replaces_a_labelled_set_of_a_self_supervised_method():
    cfg = pretraining_config(
        dict(type='ImageNet', data_root='data/imagenet', split='train', pipeline=[dict(type='PackInputs')])
    )
    launching.set_data_root(cfg, '/pictures')
    assert cfg.train_dataloader.dataset == dict(
        type='mmpretrain.UnlabelledImages', data_root='/pictures', pipeline=[dict(type='PackInputs')]
    )


def test_data_folder_is_set_inside_of_wrappers():
    cfg = pretraining_config(dict(type='SeededDataset', dataset=dict(type='UnlabelledImages', limit=5, data_root='a')))
    launching.set_data_root(cfg, '/pictures')
    inner = dict(type='UnlabelledImages', limit=5, data_root='/pictures')
    assert cfg.train_dataloader.dataset == dict(type='SeededDataset', dataset=inner)


def test_data_folder_of_a_method_with_labels_keeps_the_set():
    cfg = pretraining_config(dict(type='ImageNet', data_root='a', split='train'))
    cfg.model = dict(type='ImageClassifier')
    launching.set_data_root(cfg, '/pictures')
    assert cfg.train_dataloader.dataset == dict(type='ImageNet', data_root='/pictures', split='train')


def test_missing_data_are_said_before_anything_is_built(tmp_path):
    cfg = pretraining_config(dict(type='UnlabelledImages', data_root='data/none'))
    with pytest.raises(LaunchError, match=r'data/none does not exist\. Give a folder of pictures with --data DIR'):
        launch(cfg, work_dir=str(tmp_path))
    with pytest.raises(LaunchError, match='/nowhere does not exist'):
        launch(cfg, work_dir=str(tmp_path), data='/nowhere')
    (tmp_path / 'pictures').mkdir()
    with pytest.raises(LaunchError, match='no training data: no pictures below .*found no files at all'):
        launch(cfg, work_dir=str(tmp_path), data=str(tmp_path / 'pictures'))
    (tmp_path / 'one.jpg').touch()
    with pytest.raises(LaunchError, match='one.jpg is a file'):
        launch(cfg, work_dir=str(tmp_path), data=str(tmp_path / 'one.jpg'))
    with pytest.raises(LaunchError, match='no train_dataloader'):
        launching.set_data_root(Config(dict(model=dict(type='MoCo'))), '/pictures')


def test_bfloat16_of_any_config():
    cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic', clip_grad=dict(max_norm=2.0))))
    launching.enable_bfloat16(cfg)
    clip = dict(type='global_norm', max_norm=2.0)
    assert cfg.optim_wrapper == dict(type='mmpretrain.PretrainOptimWrapper', dtype='bfloat16', clip=clip)
    cfg = Config(dict(optim_wrapper=dict(type='PretrainOptimWrapper', dtype='float32', clip=clip)))
    launching.enable_bfloat16(cfg)
    assert cfg.optim_wrapper == dict(type='PretrainOptimWrapper', dtype='bfloat16', clip=clip)


def test_nccl_without_cuda_is_refused(unscaled, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    unscaled.launcher = 'pytorch'
    unscaled.env_cfg = dict(dist_cfg=dict(backend='nccl'))
    with pytest.raises(LaunchError, match="backend='nccl' needs a CUDA device"):
        launching.prepare_dist(unscaled)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(LaunchError, match='process 2 .* has no GPU of its own, as only 2 can be seen'):
        launch('config.py', launcher='pytorch')
    monkeypatch.setenv('LOCAL_RANK', '1')
    launching.check_devices('pytorch')
    launching.check_devices('none')


def test_norms_that_cannot_be_synchronised_are_separated(monkeypatch, capsys):
    runner = SimpleNamespace(model=nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), nn.Linear(4, 4)))
    before = dict(runner.model.named_parameters())
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    launching.separate_norms(runner)
    assert isinstance(runner.model[1], nn.SyncBatchNorm)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    launching.separate_norms(runner)
    pictures = torch.randn(5, 3, 2, 2)
    expected = nn.functional.batch_norm(runner.model[0](pictures), None, None, training=True)
    torch.testing.assert_close(runner.model[:2](pictures), expected)
    after = dict(runner.model.named_parameters())
    assert before.keys() == after.keys() and all(before[name] is value for name, value in after.items())
    assert '1 SyncBN became BatchNorm' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('launcher', 'variables'),
    [
        ('slurm', dict(SLURM_PROCID='3', SLURM_NTASKS='4', SLURM_LOCALID='1')),
        (
            'mpi',
            {f'OMPI_COMM_WORLD_{name}': value for name, value in (('RANK', '3'), ('SIZE', '4'), ('LOCAL_RANK', '1'))},
        ),
    ],
)
def test_ranks_of_other_launchers_are_translated(monkeypatch, launcher, variables):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    environ = launching.os.environ
    launching._export_rank(launcher)
    assert [environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')] == ['3', '4', '1']
    assert environ['MASTER_ADDR'] == '127.0.0.1'


def test_resume_starts_afresh_where_there_is_nothing_and_refuses_damage(unscaled, work_dir, capsys):
    launching.set_resume(unscaled, True)
    assert not unscaled.get('resume')
    assert f'No checkpoint in {work_dir}: training starts from the beginning' in capsys.readouterr().out
    (work_dir / 'iter_4.pth').write_bytes(b'')
    with pytest.raises(CheckpointError, match=r'iter_4\.pth: it is empty'):
        launching.set_resume(unscaled, True)
    with pytest.raises(CheckpointError, match=r'other\.pth: there is no such file'):
        launching.set_resume(unscaled, str(work_dir / 'other.pth'))


def test_launch_trains_and_resumes(work_dir, capsys):
    whole = launch(toy_config('unused'), work_dir=str(work_dir / 'whole'), amp=True, seed=5)
    options = {'train_cfg.max_iters': 9, 'param_scheduler': []}
    launch(toy_config('unused', experiment_name='a', param_scheduler=[]), str(work_dir / 'b'), amp=True, seed=5)
    assert whole.optim_wrapper.dtype is torch.bfloat16
    assert whole.seed == 5
    first = launch(
        toy_config('unused', experiment_name='c'), str(work_dir / 'c'), amp=True, seed=5, cfg_options=options
    )
    assert first.iter == 9
    again = launch(
        toy_config('unused', experiment_name='d', param_scheduler=[]), str(work_dir / 'c'), True, amp=True, seed=5
    )
    assert again.iter == 21


BLOCKS = dict(pattern='backbone.layers.*', backend='eager')


def test_compiled_and_recomputed_blocks_change_nothing(work_dir):
    plain = launch(toy_config('unused'), str(work_dir / 'plain'))
    changes = dict(compile_blocks=BLOCKS, activation_checkpointing=['backbone.layers.*'], experiment_name='fast')
    fast = launch(toy_config('unused', **changes), str(work_dir / 'fast'))
    assert fast.cfg.activation_checkpointing == ['backbone.layers.0', 'backbone.layers.1']
    model = fast.model
    assert all(layer._compiled_call_impl for layer in (*model.backbone.layers, *model.teacher['backbone'].layers))
    assert model.backbone._compiled_call_impl is None
    assert plain.model.state_dict().keys() == model.state_dict().keys()
    assert differences(state_of(plain), state_of(fast)) == []


@pytest.mark.parametrize('key', ['compile_blocks', 'activation_checkpointing'])
def test_pattern_without_a_module_is_refused(work_dir, key):
    value = dict(compile_blocks=dict(pattern='neck.*'), activation_checkpointing=['neck.*'])[key]
    with pytest.raises(ValueError, match=rf"{key}.*no module of the model is called 'neck\.\*'"):
        launch(toy_config('unused', **{key: value}), str(work_dir))


@pytest.mark.parametrize('content', ["default_scope='mmdet'", "model=dict(head=dict(type='mmdet.RPNHead'))"])
def test_detection_without_compiled_operators(monkeypatch, content):
    config = Config.fromstring(content, '.py')
    launching.check_operators(config)
    monkeypatch.setattr('mm_sop.engine.launch.find_spec', lambda name: None)
    with pytest.raises(LaunchError, match='needs MMCV with compiled operators: `bash tools/setup.sh test`'):
        launching.check_operators(config)
    launching.check_operators(Config(dict(default_scope='mmpretrain', work_dir='work_dirs/mmdet')))
