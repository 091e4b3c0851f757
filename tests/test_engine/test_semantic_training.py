"""Training with semantic pairs: the base methods unchanged, resumption, and the toolchain as a whole."""

import math
import sys

import numpy as np
import pytest
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from testing.pair_training import MODELS, VIEW, make_config
from testing.resa_models import resnet_config
from testing.siamese_models import siamese_config
from testing.sop_models import sop_config
from testing.toy_training import differences, state_of

from mm_sop.datasets import UnlabeledImages
from mm_sop.datasets.semantic_pairs import PairManifest, describe_data
from mm_sop.evaluation.retrieval.mining import write_manifest


@pytest.fixture(scope='module')
def manifests(images, tmp_path_factory):
    """Manifests with four pairs and with none."""
    folder, dataset, paths = tmp_path_factory.mktemp('manifests'), UnlabeledImages(images), {}
    for name, pairs in dict(some=[[0, 5], [1, 2], [3, 11], [5, 7]], none=[]).items():
        pairs = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        paths[name] = str(folder / f'{name}.json')
        manifest = PairManifest(pairs, np.full(len(pairs), 0.98, np.float32), describe_data(dataset))
        write_manifest(manifest, paths[name])
    return paths


def train(*args, **options):
    runner = Runner.from_cfg(make_config(*args, **options))
    runner.train()
    return runner


@pytest.mark.parametrize('method', MODELS)
def test_without_pairs_training_is_that_of_the_base_method(tmp_path, images, manifests, method):
    base = state_of(train(tmp_path / 'base', images, dict(type=method)))
    for mode in ('concat', 'replace'):
        own = train(tmp_path / mode, images, dict(type=method), manifests['none'], mode=mode)
        assert differences(state_of(own), base) == []


@pytest.mark.parametrize('method', MODELS)
def test_unchanged_methods_of_mmpretrain_train_on_pairs(tmp_path, images, manifests, method):
    base = state_of(train(tmp_path / 'base', images, dict(type=method)))
    runner = train(tmp_path / 'pairs', images, dict(type=method), manifests['some'])
    # 12 images and 4 pairs in batches of 4.
    assert len(runner.train_dataloader) == 4
    assert 'backbone.conv1.weight' in differences(state_of(runner), base)
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())


@pytest.mark.parametrize(
    'model',
    [
        dict(type='SemanticMoCo', mask_known_positives=True),
        dict(type='SemanticSimCLR', mask_known_positives=True),
        dict(type='SemanticSimSiam'),
        dict(type='SemanticBYOL'),
    ],
    ids=lambda model: model['type'],
)
def test_resumes_in_the_middle_of_an_epoch(tmp_path, images, manifests, model):
    straight = train(tmp_path / 'straight', images, model, manifests['some'])
    config = make_config(tmp_path / 'resumed', images, model, manifests['some'])
    config.load_from, config.resume = str(tmp_path / 'straight/iter_3.pth'), True
    resumed = Runner.from_cfg(config)
    loaded = []
    dataset = resumed.build_dataloader(config.train_dataloader).dataset
    original = type(dataset).__getitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(dataset), '__getitem__', lambda self, key: loaded.append(key) or original(self, key))
        resumed.train()
    # What was seen is not decoded again.
    assert len(loaded) == 3 * 4
    assert differences(state_of(resumed), state_of(straight)) == []


@pytest.mark.parametrize('method', MODELS)
def test_joint_mode_trains(tmp_path, images, manifests, method):
    model = dict(type=f'Semantic{method}', semantic_weight=0.5)
    config = make_config(tmp_path, images, model, manifests['some'], max_iters=2, mode='joint')
    config.model.head.type = f'Weighted{config.model.head.type}'
    runner = Runner.from_cfg(config)
    runner.train()
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())


@HOOKS.register_module()
class LearningRateRecorder(Hook):
    """Records the learning rates of every step: of the parameters with a fixed rate, and of the others."""

    def __init__(self):
        self.fixed, self.others = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        groups = runner.optim_wrapper.optimizer.param_groups
        self.fixed.append({group['lr'] for group in groups if group.get('fix_lr')})
        self.others.append({group['lr'] for group in groups if not group.get('fix_lr')})


def test_predictor_keeps_its_learning_rate(tmp_path, images, manifests):
    config = make_config(tmp_path, images, dict(type='SimSiam'), manifests['some'])
    config.custom_hooks = [*config.custom_hooks, dict(type='LearningRateRecorder')]
    runner = Runner.from_cfg(config)
    runner.train()
    recorder = next(hook for hook in runner.hooks if isinstance(hook, LearningRateRecorder))
    assert recorder.fixed == [{0.05}] * 6
    expected = [0.05 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert [rates.pop() for rates in recorder.others] == pytest.approx(expected)


def test_sop_trains_on_pairs_with_masks_and_local_crops(tmp_path, images, manifests):
    config = make_config(tmp_path, images, dict(type='SimSiam'), manifests['some'], max_iters=2)
    config.model = dict(sop_config(), data_preprocessor=config.model.data_preprocessor)
    local = [dict(type='FastRandomResizedCrop', scale=8)]
    config.train_dataloader.dataset.dataset.pipeline = [
        dict(type='LoadImage'),
        dict(type='MultiView', num_views=[2, 2], transforms=[VIEW, local]),
        dict(type='BlockMaskGenerator', grid=(4, 4)),
        dict(type='PackInputs', algorithm_keys=['mask']),
    ]
    config.custom_hooks = [dict(type='TeacherHook', momentum=0.9)]
    runner = Runner.from_cfg(config)
    runner.train()
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())


@pytest.mark.parametrize('method', ['byol', 'dino', 'moco', 'resa'])
def test_siamese_methods_with_positions_train_on_pairs(tmp_path, images, manifests, method):
    def state(name, manifest):
        config = make_config(tmp_path / name, images, dict(type='SimSiam'), manifest, max_iters=2)
        local = dict(type='LocalGlobalHead', weight=0.3)
        model = resnet_config(local_head=local) if method == 'resa' else siamese_config(method, local=dict(weight=0.3))
        config.model = dict(model, data_preprocessor=config.model.data_preprocessor)
        config.custom_hooks = [dict(type='TeacherHook', momentum=0.9)]
        runner = Runner.from_cfg(config)
        runner.train()
        return state_of(runner)

    paired = state('pairs', manifests['some'])
    assert all(value.isfinite().all() for value in paired.values())
    assert len(differences(paired, state('base', None))) > 10


def test_tool_from_images_to_training(tmp_path, images, repository, monkeypatch, capsys):
    sys.path.insert(0, str(repository / 'tools'))
    import mine_pairs

    config = make_config(tmp_path / 'base', images, dict(type='MoCo'), max_iters=2)
    config.data_preprocessor = config.model.pop('data_preprocessor')
    config.dump(tmp_path / 'config.py')
    base = Runner.from_cfg(make_config(tmp_path / 'base', images, dict(type='MoCo'), max_iters=2))
    base.train()
    arguments = [
        'mine_pairs.py', tmp_path / 'config.py', tmp_path / 'base/iter_2.pth', '--work-dir', tmp_path / 'pairs',
        '--lower', '0.5', '--upper', '1', '--num-workers', '0', '--folder-labels', '--data', images,
    ]  # fmt: skip
    monkeypatch.setattr(sys, 'argv', [str(argument) for argument in arguments])
    mine_pairs.main()
    assert 'pairs among 12 images' in capsys.readouterr().out
    files = {path.name for path in (tmp_path / 'pairs').glob('[!.]*')}
    assert files == {'features', 'gallery.png', 'histogram.png', 'pairs.json', 'pairs.npz', 'report.json', 'report.md'}
    manifest = PairManifest.load(tmp_path / 'pairs/pairs.json')
    assert manifest.definition['encoder']['prefix'] == 'backbone.'
    assert len(manifest.pairs) > 0
    runner = train(tmp_path / 'sepp', images, dict(type='MoCo'), str(tmp_path / 'pairs/pairs.json'), max_iters=2)
    # Training loads nothing of the encoder.
    assert not any('network' in name for name in runner.model.state_dict())
    monkeypatch.setattr(sys, 'argv', [*sys.argv, '--network', 'student', '--prefix', 'neck.'])
    with pytest.raises(SystemExit, match='mine_pairs.py: .*does not fit ResNet_CIFAR(?s:.*)missing'):
        mine_pairs.main()
