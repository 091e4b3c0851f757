import json
import math
import runpy
import sys
from types import SimpleNamespace

import pytest
from testing.sample_images import write_splits

CONFIG = """
view = [dict(type='RandomResizedCrop', scale=16), dict(type='RandomFlip', prob=0.5)]
plain = [dict(type='LoadImage'), dict(type='Resize', scale=16), dict(type='PackInputs')]
model = dict(type='SOP', backbone={backbone})
data_preprocessor = dict(type='SelfSupDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True)
train_dataloader = dict(dataset=dict(type='SeededDataset', dataset=dict(pipeline=[
    dict(type='LoadImage'), dict(type='MultiView', num_views=2, transforms=[view]), dict(type='PackInputs')])))
splits = {{name: dict(type='LabeledImages', data_root='{data}/' + name, pipeline=plain) for name in ('bank', 'test')}}
custom_hooks = [dict(type='KNNHook', bank=splits['bank'], queries=dict(test=splits['test']), num_neighbors=[1, 3])]
"""
TRANSFORMER = dict(
    type='MaskedVisionTransformer',
    arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32),
    img_size=16,
    patch_size=4,
)
CONVOLUTIONS = dict(type='ResNet', depth=18, base_channels=4, stem_channels=4)


@pytest.fixture(scope='module')
def tool(repository):
    return runpy.run_path(str(repository / 'tools/benchmarks/supervised_ceiling.py'), run_name='tool')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp('labeled'), 6)


@pytest.mark.parametrize('backbone', [TRANSFORMER, CONVOLUTIONS], ids=['transformer', 'convolutions'])
def test_ceiling_of_any_backbone(tool, work_dir, data, backbone, monkeypatch, capsys):
    config = work_dir / 'tiny.py'
    config.write_text(CONFIG.format(backbone=backbone, data=data))
    arguments = ['tool', str(config), '--work-dir', str(work_dir), '--minutes', '0.01', '--batch-size', '4']
    monkeypatch.setattr(sys, 'argv', arguments)
    tool['main']()
    record = json.loads((work_dir / 'supervised_ceiling.json').read_text())
    assert (record['network'], record['iter']) == ('supervised', None)
    assert list(record['scores']) == ['test_class_k1', 'test_class_k3']
    assert record['scores']['test_class_k1']['num_images'] == 12
    assert record['training']['iterations'] >= 1
    assert 'test class, k = 3' in capsys.readouterr().out


def test_learning_rate_follows_the_clock(tool, monkeypatch):
    """A minute of training, of which 3 seconds are warm-up."""
    now = [100.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    group = dict(lr=0.2)
    loop = SimpleNamespace(stop_training=False)
    runner = SimpleNamespace(optim_wrapper=SimpleNamespace(param_groups=[group]), train_loop=loop)
    hook = tool['TimeBudgetHook'](minutes=1)
    hook.before_train(runner)
    for seconds, expected in ((0, 0), (1.5, 0.1), (30, 0.1), (45, 0.1 * (1 + math.cos(0.75 * math.pi))), (60, 0)):
        now[0] = 100 + seconds
        hook.before_train_iter(runner, 0)
        assert group['lr'] == pytest.approx(expected)
        hook.after_train_iter(runner, 0)
        assert loop.stop_training == (seconds == 60)


def test_configs_without_labels(tool, work_dir, data, monkeypatch):
    config = work_dir / 'tiny.py'
    config.write_text(CONFIG.format(backbone=TRANSFORMER, data=data) + 'custom_hooks = []\n')
    monkeypatch.setattr(sys, 'argv', ['tool', str(config)])
    with pytest.raises(SystemExit, match='has no KNNHook'):
        tool['main']()
