import pytest
import torch
from mmengine.config import Config
from testing.toy_training import toy_config

from mm_sop.engine import launch as launching
from mm_sop.engine import preflight
from mm_sop.engine.launch import launch
from mm_sop.utils.config import merge_options
from mm_sop.utils.failures import LaunchError


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


def test_options_are_merged_and_likely_typos_are_reported(unscaled, capsys):
    merge_options(unscaled, {'optim_wrapper.optimizer.lr': 0.5, 'train_dataloader.batchsize': 2})
    assert unscaled.optim_wrapper.optimizer.lr == 0.5
    output = capsys.readouterr().out
    assert (
        "--cfg-options train_dataloader.batchsize: 'batchsize' is new in the config; did you mean 'batch_size'"
        in output
    )
    assert 'optimizer.lr' not in output


def test_options_that_do_not_fit_are_refused(unscaled):
    with pytest.raises(LaunchError, match=r'--cfg-options custom_hooks\.9\.type=x does not fit'):
        merge_options(unscaled, {'custom_hooks.9.type': 'x'})


def test_missing_labeled_images_of_knn_are_reported_at_the_start(repository, images, work_dir):
    config = Config.fromfile(repository / 'configs/sop/quickstart.py')
    root = f'{work_dir}/classes/bank'
    merge_options(config, {'custom_hooks.1.bank.data_root': root})
    assert config.custom_hooks[1].type == 'KNNHook'
    with pytest.raises(LaunchError, match=rf'no labeled images for k-NN: {root}.*custom_hooks\.1'):
        launching.launch(config, str(work_dir), data=str(images))


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
            merge_options(config, {key: 'x'})
    merge_options(config, {'custom_hooks.0.momentum': 0.9, 'notes.author': 'me'})
    assert config.custom_hooks[0].momentum == 0.9


def pretraining_config(dataset):
    model = dict(type='MoCo')
    return Config(dict(default_scope='mmpretrain', model=model, train_dataloader=dict(dataset=dataset)))


def test_data_folder_replaces_a_labeled_set_of_a_self_supervised_method():
    cfg = pretraining_config(
        dict(type='ImageNet', data_root='data/imagenet', split='train', pipeline=[dict(type='PackInputs')])
    )
    launching.set_data_root(cfg, '/images')
    assert cfg.train_dataloader.dataset == dict(
        type='mmpretrain.UnlabeledImages', data_root='/images', pipeline=[dict(type='PackInputs')]
    )


def test_data_folder_is_set_inside_of_wrappers():
    cfg = pretraining_config(dict(type='SeededDataset', dataset=dict(type='UnlabeledImages', limit=5, data_root='a')))
    launching.set_data_root(cfg, '/images')
    inner = dict(type='UnlabeledImages', limit=5, data_root='/images')
    assert cfg.train_dataloader.dataset == dict(type='SeededDataset', dataset=inner)


def test_data_folder_with_shards(tmp_path):
    cfg = pretraining_config(dict(type='UnlabeledImages', limit=5, data_root='a'))
    (tmp_path / 'shard-000000.tar').write_bytes(bytes(1024))
    launching.set_data_root(cfg, str(tmp_path))
    assert cfg.train_dataloader.dataset == dict(type='mmpretrain.ShardedImages', limit=5, data_root=str(tmp_path))
    preflight.check_training_images(cfg)
    cfg.train_dataloader.dataset.data_root = f'{tmp_path}/shard-{{000000..000003}}.tar'
    with pytest.raises(LaunchError, match='no training data: there is no .*shard-000001.tar'):
        preflight.check_training_images(cfg)
    launching.set_data_root(cfg, '/images')
    assert cfg.train_dataloader.dataset == dict(type='mmpretrain.UnlabeledImages', limit=5, data_root='/images')


def test_data_folder_of_a_method_with_labels_keeps_the_set():
    cfg = pretraining_config(dict(type='ImageNet', data_root='a', split='train'))
    cfg.model = dict(type='ImageClassifier')
    launching.set_data_root(cfg, '/images')
    assert cfg.train_dataloader.dataset == dict(type='ImageNet', data_root='/images', split='train')


def test_missing_data_are_reported_before_anything_is_built(tmp_path):
    cfg = pretraining_config(dict(type='UnlabeledImages', data_root='data/none'))
    with pytest.raises(LaunchError, match=r'data/none does not exist\. Give a folder of images with --data DIR'):
        launch(cfg, work_dir=str(tmp_path))
    with pytest.raises(LaunchError, match='/nowhere does not exist'):
        launch(cfg, work_dir=str(tmp_path), data='/nowhere')
    (tmp_path / 'images').mkdir()
    with pytest.raises(LaunchError, match='no training data: no images below .*found no files at all'):
        launch(cfg, work_dir=str(tmp_path), data=str(tmp_path / 'images'))
    (tmp_path / 'one.jpg').touch()
    with pytest.raises(LaunchError, match='one.jpg is a file'):
        launch(cfg, work_dir=str(tmp_path), data=str(tmp_path / 'one.jpg'))
    with pytest.raises(LaunchError, match='no train_dataloader'):
        launching.set_data_root(Config(dict(model=dict(type='MoCo'))), '/images')


def test_bfloat16_of_any_config():
    cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic', clip_grad=dict(max_norm=2.0))))
    launching.enable_bfloat16(cfg)
    clip = dict(type='global_norm', max_norm=2.0)
    assert cfg.optim_wrapper == dict(type='mmpretrain.PretrainOptimWrapper', dtype='bfloat16', clip=clip)
    cfg = Config(dict(optim_wrapper=dict(type='PretrainOptimWrapper', dtype='float32', clip=clip)))
    launching.enable_bfloat16(cfg)
    assert cfg.optim_wrapper == dict(type='PretrainOptimWrapper', dtype='bfloat16', clip=clip)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(LaunchError, match='process 2 .* has no GPU of its own, as only 2 can be seen'):
        launch('config.py', launcher='pytorch')
    monkeypatch.setenv('LOCAL_RANK', '1')
    preflight.check_devices('pytorch')
    preflight.check_devices('none')


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


@pytest.mark.parametrize('content', ["default_scope='mmdet'", "model=dict(head=dict(type='mmdet.RPNHead'))"])
def test_detection_without_compiled_operators(monkeypatch, content):
    config = Config.fromstring(content, '.py')
    preflight.check_operators(config)
    monkeypatch.setattr('mm_sop.engine.preflight.find_spec', lambda name: None)
    with pytest.raises(LaunchError, match='needs MMCV with compiled operators: `bash tools/setup.sh test`'):
        preflight.check_operators(config)
    preflight.check_operators(Config(dict(default_scope='mmpretrain', work_dir='work_dirs/mmdet')))
