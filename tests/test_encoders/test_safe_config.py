"""A config that comes with a file describes a network, and can do nothing else."""

import copy
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS
from testing.sop_models import sop_config

import mm_sop
from mm_sop.encoders.checkpoint import WeightsError
from mm_sop.encoders.encoder import SPECIFICATION
from mm_sop.encoders.safe_config import check_config, check_untrusted, stored_config

CONFIGS = Path(__file__).parents[2] / 'configs'
REAL = [
    ('sop/vits.py', ('model', 'data_preprocessor', 'train_dataloader', 'custom_hooks')),
    ('resa/resa_r18_composites.py', ('model', 'data_preprocessor', 'train_dataloader', 'custom_hooks')),
    ('detection/mask-rcnn_r50_fpn_1x_coco.py', ('model', 'test_dataloader')),
]
BACKBONE = dict(
    type='ResNet',
    depth=18,
    stem_channels=4,
    base_channels=4,
    norm_cfg=dict(type='BN', requires_grad=True),
    conv_cfg=dict(type='Conv2d'),
    init_cfg=[dict(type='Kaiming', layer=['Conv2d']), dict(type='Constant', val=1)],
)


def places(tree, path=()):
    """Paths of all dictionaries in nested settings."""
    if isinstance(tree, dict):
        yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, (dict, list, tuple)):
            yield from places(value, (*path, key))


def changed(tree, path, entries):
    """A copy with other entries in one of its dictionaries; tuples become lists."""
    tree = json.loads(json.dumps(tree))
    inner = tree
    for key in path:
        inner = inner[key if isinstance(inner, list) else str(key)]
    inner.update(entries)
    return tree


@pytest.fixture
def trap(tmp_path):
    """Settings that make a folder when MMEngine builds them, and the folder."""
    return dict(type='os.mkdir', path=str(tmp_path / 'code was run')), tmp_path / 'code was run'


def test_the_trap_works(trap):
    MODELS.build(dict(trap[0]))
    assert trap[1].exists()


@pytest.mark.parametrize(('name', 'sections'), REAL, ids=[name for name, _ in REAL])
def test_hostile_settings_are_refused_at_every_place(name, sections):
    values = Config.fromfile(CONFIGS / name).to_dict()
    built = {key: values[key] for key in ('default_scope', *sections) if key in values}
    built['custom_hooks'] = [
        {key: hook[key] for key in ('bank', 'queries')} for hook in built.get('custom_hooks', ()) if 'bank' in hook
    ]
    built.update({key: dict(dataset=built[key]['dataset']) for key in sections if key.endswith('loader')})
    check_config(Config(copy.deepcopy(built)), 'w.pth', *sections)
    parts = dict(model=1, data_preprocessor=1, train_dataloader=2, test_dataloader=2, custom_hooks=3)
    found = [path for path in places(built) if path and len(path) >= parts[path[0]]]
    assert len(found) > 12
    hostile = (
        dict(type='os.mkdir', path='x'),
        dict(type=['os.mkdir']),
        dict(added=[dict(type='builtins.print')]),
        dict(added=[[1, dict(type='mmengine.config.Config.fromfile', filename='x.py')]]),
        dict(_scope_='antigravity'),
        {"a': print(1), 'b": 1},
    )
    for number, path in enumerate(found):
        for entries in (hostile[number % 5], hostile[-1]):
            settings = changed(built, path, entries)
            if 'init_cfg' in path:
                assert 'os.mkdir' not in str(check_config(Config(settings), 'w.pth', *sections).to_dict())
                continue
            with pytest.raises(WeightsError, match='the config in w.pth is not used'):
                check_config(Config(settings), 'w.pth', *sections)


def save(path, model, state=None, **config):
    text = '\n'.join(f'{name} = {value!r}' for name, value in dict(model=model, **config).items())
    torch.save(dict(state_dict=state or dict(x=torch.ones(1)), meta=dict(cfg=text)), path)


def test_nothing_is_built_of_a_hostile_checkpoint(trap, tmp_path):
    """Right through the door that users go through, with each setting of a backbone replaced in turn."""
    torch.manual_seed(0)
    backbone = MODELS.build(copy.deepcopy(BACKBONE))
    state = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    for path in places(BACKBONE):
        hostile = changed(BACKBONE, path, trap[0])
        save(tmp_path / 'w.pth', dict(type='SimSiam', backbone=hostile), state)
        if path[:1] == ('init_cfg',):
            assert 'init_cfg' not in mm_sop.load(tmp_path / 'w.pth').specification.backbone
        else:
            with pytest.raises(WeightsError, match=r"type = 'os.mkdir': no registry has a class of this name.*--trust"):
                mm_sop.load(tmp_path / 'w.pth')
    for extra in (
        dict(custom_imports=dict(imports=['antigravity'], allow_failed_imports=False)),
        dict(_base_=['antigravity.py']),
    ):
        save(tmp_path / 'w.pth', dict(type='SimSiam', backbone=BACKBONE), state, **extra)
        assert isinstance(mm_sop.load(tmp_path / 'w.pth').network, type(backbone))
    assert not trap[1].exists()
    # On purpose it is built as before.
    save(tmp_path / 'w.pth', dict(type='SimSiam', backbone=dict(trap[0])), state)
    with pytest.raises(AttributeError, match="'NoneType' object"):
        mm_sop.load(tmp_path / 'w.pth', trusted=True)
    assert trap[1].exists()


@pytest.mark.parametrize(
    ('kind', 'settings', 'kept'),
    [
        ('model', dict(type='ResNet', depth=18, init_cfg=dict(type='os.mkdir'), pretrained='x.pth'), ['depth', 'type']),
        ('model', dict(type='TIMMBackbone', model_name='resnet18', checkpoint_path='x.pth'), ['model_name', 'type']),
        ('model', dict(type='mmengine.Conv2d'), ['type']),
        ('model', dict(type='TIMMBackbone', model_name='hf-hub:owner/name'), None),
        ('model', dict(type='TIMMBackbone', model_name='resnet18', norm_layer='os.mkdir'), None),
        ('model', dict(type='HuggingFaceClassifier', model_name='owner'), None),
        ('model', dict(type='CLIPGenerator', tokenizer_path='x.pth'), None),
        ('model', dict(type='ResNet', depth=18, teacher_config='x.py'), None),
        ('model', dict(type='ResNet', depth=18, source='https://example.org/x'), None),
        ('model', dict(type='ResNet', depth=18, source='{{ fileDirname }}'), None),
        ('model', dict(type='mmcv.cnn.ConvModule'), None),
        ('model', dict(type='mmpretrain.models.ResNet'), None),
        ('model', dict(type='CocoDataset'), None),
        ('model', dict(type=None), None),
        ('model', dict(type='ResNet', depth={18}), None),
        ('data', dict(type='torchvision/ConvertImageDtype', dtype='float32'), ['dtype', 'type']),
        ('data', dict(type='torchvision/ConvertImageDtype', dtype='float, print(1)'), None),
        ('data', dict(type='torchvision/Lambda'), None),
        ('data', dict(type='LoadImageFromFile', backend_args=dict(backend='http')), None),
        ('data', dict(type='Albumentations', transforms=[]), None),
        ('data', dict(type='BaseDataset', ann_file='list.json'), ['ann_file', 'type']),
        ('data', dict(type='BaseDataset', ann_file='list.PKL'), None),
        ('data', dict(type='BaseDataset', ann_file='list.yaml'), None),
        ('data', [dict(type='BaseDataset')], None),
    ],
)
def test_what_reads_fetches_or_evaluates_is_dropped_or_refused(kind, settings, kept):
    if kept is None:
        with pytest.raises(WeightsError, match='w.pth'):
            check_untrusted(settings, 'w.pth', kind)
    else:
        assert sorted(check_untrusted(settings, 'w.pth', kind)) == kept


def test_detectors_cannot_name_functions_that_mmcv_evaluates():
    init_default_scope('mmdet')
    values = Config.fromfile(CONFIGS / 'detection/mask-rcnn_r50_fpn_1x_coco.py').to_dict()

    def read():
        content = dict(meta=dict(cfg='\n'.join(f'{name} = {value!r}' for name, value in values.items())))
        return stored_config(content, 'w.pth', ('model', 'test_dataloader'))

    assert read().model.test_cfg.rcnn.nms.type == 'nms'
    for owner, key in (
        (values['model']['test_cfg']['rcnn']['nms'], 'type'),
        (values['model']['roi_head']['bbox_roi_extractor']['roi_layer'], 'type'),
        (values['test_dataloader']['dataset'], 'type'),
        (values['test_dataloader']['dataset']['pipeline'][1], 'type'),
        (values, 'default_scope'),
    ):
        before, owner[key] = owner[key], "__import__('os').abort()"
        with pytest.raises(WeightsError, match='w.pth is not used: .*abort'):
            read()
        owner[key] = before


def test_classes_that_the_user_has_registered_are_his_own():
    @DATASETS.register_module(name='OwnImages')
    class OwnImages:
        """Of a program that imports this package."""

    try:
        assert check_untrusted(dict(type='OwnImages'), 'w.pth', 'data') == dict(type='OwnImages')
    finally:
        DATASETS.module_dict.pop('OwnImages')
    with pytest.raises(WeightsError, match='OwnImages'):
        check_untrusted(dict(type='OwnImages'), 'w.pth', 'data')


def test_deep_nesting_and_broken_text_are_clear_errors(tmp_path):
    nested = '[' * 5000 + ']' * 5000
    for text in (f'model = dict(backbone={nested})', 'model = dict(', 'model = \0', 'model = dict(backbone=[1])'):
        torch.save(dict(meta=dict(cfg=text)), tmp_path / 'w.pth')
        with pytest.raises(WeightsError, match='w.pth'):
            mm_sop.load(tmp_path / 'w.pth')
    good = dict(type='ResNet', depth=18, stem_channels=4, base_channels=4)
    state = {f'backbone.{name}': value for name, value in MODELS.build(dict(good)).state_dict().items()}
    for config, message in (
        (dict(data_preprocessor=dict(mean='red')), "no such image size and colors: 224, .*'red'"),
        (dict(train_dataloader=dict(dataset=dict(pipeline=[dict(type='RandomResizedCrop', scale=-1)]))), 'colors: -1'),
        (dict(train_dataloader=dict(dataset='images')), 'does not describe the training images'),
        (dict(train_dataloader=dict(dataset=dict(pipeline=[dict(size=3)]))), 'does not describe the training images'),
    ):
        save(tmp_path / 'w.pth', dict(backbone=good), state, **config)
        with pytest.raises(WeightsError, match=message):
            mm_sop.load(tmp_path / 'w.pth')
    deep = sop_config()
    inner = deep['backbone']
    for _ in range(5000):
        inner['arch'] = inner = dict()
    with pytest.raises(WeightsError, match='nested too deeply'):
        check_untrusted(deep, 'w.pth')


def test_exports_are_data(tmp_path, trap):
    specification = dict(
        backbone=trap[0], mean=[0] * 3, std=[1] * 3, image_size=32, weights='w.safetensors', format='safetensors'
    )
    for change, message in (
        (dict(), "backbone.type = 'os.mkdir'"),
        (dict(weights='../w.safetensors'), r"damaged or of another version: weights = '../w"),
        (dict(image_size='32'), 'image_size'),
        (dict(mean='red', format='pickle'), 'mean = .red., format = .pickle.'),
        (dict(more=1), 'is damaged'),
        (None, 'is damaged'),
    ):
        text = '{' if change is None else json.dumps(dict(specification, **change))
        (tmp_path / SPECIFICATION).write_text(text)
        with pytest.raises(WeightsError, match=message):
            mm_sop.load(tmp_path)
    assert not trap[1].exists()
