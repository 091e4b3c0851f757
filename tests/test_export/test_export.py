"""Every target gives back our features, or says that it cannot."""

import copy
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from PIL import Image
from torch import nn

import mm_sop
from mm_sop.encoders.checkpoint import WeightsError
from mm_sop.encoders.encoder import Encoder, EncoderSpecification
from mm_sop.encoders.formats import from_format, to_format
from mm_sop.evaluation.context import ProtocolResult, Score
from mm_sop.evaluation.results import EvaluationResults, finished_record
from mm_sop.export import TARGETS, ExportError, export
from mm_sop.export.export import TOLERANCE, sample_images

VIT = dict(
    type='MaskedVisionTransformer',
    arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
    img_size=32,
    patch_size=8,
)
NETWORKS = dict(
    vit=VIT,
    vit_scaled=dict(VIT, layer_scale_init_value=0.5),
    vit_stem=dict(VIT, stem='conv'),
    # The last windows of the 4 x 4 map are filled up.
    windowed=dict(VIT, type='WindowedVisionTransformer', window_size=3, global_indices=(1,)),
    moco_vit=dict(VIT, type='FixedPositionViT', out_type='raw'),
    r18=dict(type='ResNet', depth=18, norm_cfg=dict(type='SyncBN')),
    narrow=dict(type='ResNet', depth=50, stem_channels=8, base_channels=8),
    small=dict(type='ResNet_CIFAR', depth=18, stem_channels=8, base_channels=8),
    bounded=dict(type='RFResNet', stem_channels=8, base_channels=8),
)
ANY = ['mmpretrain', 'mmdet', 'safetensors', 'torchscript']
ABLE = dict(
    vit=[*ANY, 'timm', 'torchvision', 'huggingface', 'onnx'],
    vit_scaled=[*ANY, 'timm', 'huggingface'],
    vit_stem=ANY,
    windowed=[*ANY, 'onnx'],
    moco_vit=[*ANY, 'timm'],
    r18=[*ANY, 'timm', 'torchvision', 'huggingface'],
    narrow=[*ANY, 'huggingface'],
    small=[*ANY, 'onnx'],
    bounded=ANY,
)


def shuffle(network):
    """Give all weights and statistics values of their own, zeros and ones included."""
    for value in [*network.parameters(), *network.buffers()]:
        if value.is_floating_point():
            noise = torch.randn_like(value) * (0.05 if value.ndim == 1 else 0.5 / value[0].numel() ** 0.5)
            value.data.add_(noise).abs_() if value.ndim == 1 else value.data.add_(noise)
    return network


def make_encoder(name, image_size=32):
    network = MODELS.build(copy.deepcopy(NETWORKS[name]))
    specification = EncoderSpecification(NETWORKS[name], (120.0, 110.0, 100.0), (60.0, 55.0, 50.0), image_size)
    return Encoder(shuffle(network), specification)


@pytest.fixture(scope='module')
def samples(images):
    return sample_images(images, 3)


@pytest.mark.parametrize('name', NETWORKS)
def test_libraries_give_back_our_features(name, samples, tmp_path):
    encoder = make_encoder(name)
    expected = encoder(samples)
    for target in ABLE[name]:
        differences = export(encoder, target, tmp_path / target, samples)
        assert max(differences.values()) <= TOLERANCE, target
        assert ('global' in differences) == (target != 'mmdet')
        assert target in (tmp_path / target / 'README.md').read_text()
        for path in (tmp_path / target).iterdir():
            assert str(tmp_path).encode() not in path.read_bytes(), path
        if TARGETS[target].format(encoder.network):
            found = mm_sop.load(tmp_path / target)(samples)
            for ours, theirs in zip(expected, found, strict=True):
                torch.testing.assert_close(theirs, ours)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(ABLE[name])


@pytest.mark.parametrize(
    ('name', 'target', 'message'),
    [
        ('vit_stem', 'timm', 'its convolutional stem; these can: mmpretrain, mmdet, safetensors, onnx, torchscript'),
        ('vit_scaled', 'torchvision', 'LayerScale; these can: .*timm, huggingface'),
        ('narrow', 'torchvision', '8 instead of 64 channels; these can: .*huggingface'),
        ('small', 'huggingface', 'the layout of ResNet_CIFAR'),
        ('bounded', 'torchvision', 'the layout of RFResNet'),
        ('windowed', 'timm', 'the layout of WindowedVisionTransformer'),
    ],
)
def test_what_a_library_cannot_express_is_refused(name, target, message, samples, tmp_path):
    with pytest.raises(ExportError, match=f'{target} cannot express {message}'):
        export(make_encoder(name), target, tmp_path / 'out', samples)
    assert not any(tmp_path.iterdir())


def test_unknown_names_are_refused_before_anything_is_written(samples, tmp_path):
    with pytest.raises(ExportError, match="no target 'onxx': expected one of .*onnx"):
        export(make_encoder('vit'), 'onxx', tmp_path / 'out', samples)
    assert not list(tmp_path.iterdir())
    for rename in (from_format, to_format):
        with pytest.raises(ValueError, match="no format 'tim' of weights: expected one of "):
            rename({}, 'tim')


def test_images_of_another_size_than_the_positions(samples, tmp_path):
    encoder = make_encoder('vit', image_size=48)
    for target in ('timm', 'torchvision', 'huggingface'):
        with pytest.raises(ExportError, match='images of 48 pixels with positions for 32; these can: mmpretrain'):
            export(encoder, target, tmp_path / 'out', samples)
    for target in ('mmpretrain', 'mmdet'):
        assert max(export(encoder, target, tmp_path / target, samples).values()) <= TOLERANCE


@pytest.mark.parametrize('name', ['vit', 'vit_stem'])
def test_every_parameter_learns_downstream(name, samples, tmp_path):
    # Else several processes wait for each other.
    from mmdet.registry import MODELS as DETECTORS
    from mmpretrain import get_model

    for target in ('mmpretrain', 'mmdet'):
        export(make_encoder(name), target, tmp_path / target, samples)
    detector = dict(Config.fromfile(tmp_path / 'mmdet/backbone.py').model.backbone)
    detector.pop('_delete_')
    classifier = get_model(tmp_path / 'mmpretrain/config.py')
    for network in (classifier.backbone, DETECTORS.build(detector)):
        network.train()
        network(torch.randn(2, 3, 32, 32))[-1].sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_transformers_without_class_token_are_refused(samples, tmp_path):
    backbone = dict(VIT, type='VisionTransformer', with_cls_token=False, out_type='raw')
    encoder = Encoder(MODELS.build(dict(backbone)), EncoderSpecification(backbone, (0.0,) * 3, (1.0,) * 3, 32))
    for target in ('timm', 'torchvision', 'huggingface'):
        with pytest.raises(ExportError, match=r'no \[CLS\] token'):
            export(encoder, target, tmp_path / 'out', samples)
    assert export(encoder, 'mmpretrain', tmp_path / 'out', samples)['global'] <= TOLERANCE


def test_other_features_leave_nothing_behind(samples, tmp_path, monkeypatch):
    encoder, target = make_encoder('vit'), TARGETS['timm']
    convert = type(target).converted
    # One swapped tensor, as by a wrong line in a table.
    monkeypatch.setattr(type(target), 'converted', lambda self, e: swapped(convert(self, e)))
    with pytest.raises(ExportError, match='timm computes other features'):
        export(encoder, 'timm', tmp_path / 'out', samples)
    assert not any(tmp_path.iterdir())


def test_failures_of_a_library_are_named(samples, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError('no such operator\nand much more')

    monkeypatch.setattr(type(TARGETS['onnx']), 'write', fail)
    with pytest.raises(
        ExportError, match=r'^onnx fails on MaskedVisionTransformer: no such operator \.\.\. and much more$'
    ):
        export(make_encoder('vit'), 'onnx', tmp_path / 'out', samples)
    assert not any(tmp_path.iterdir())


def swapped(state):
    first, second = 'blocks.0.norm1.weight', 'blocks.0.norm2.weight'
    return dict(state, **{first: state[second], second: state[first]})


def test_tensors_are_plain_and_nothing_is_overwritten(samples, tmp_path):
    encoder = make_encoder('vit')
    export(encoder, 'torchvision', tmp_path / 'out', samples, license='cc-by-4.0')
    state = torch.load(tmp_path / 'out/model.pth', weights_only=True)
    assert len(state) == len([name for name in encoder.network.state_dict() if name != 'mask_token'])
    assert 'license: cc-by-4.0' in (tmp_path / 'out/README.md').read_text()
    with pytest.raises(ExportError, match='exists: delete it'):
        export(encoder, 'torchvision', tmp_path / 'out', samples)


def test_detector_is_built_from_the_export(samples, tmp_path):
    from mmdet.registry import MODELS as DETECTORS
    from mmdet.utils import register_all_modules

    encoder = make_encoder('narrow')
    export(encoder, 'mmdet', tmp_path / 'out', samples)
    register_all_modules(init_default_scope=True)
    config = Config(dict(model=dict(backbone=dict(type='ResNet', depth=18, frozen_stages=3))))
    (tmp_path / 'out').rename(tmp_path / 'moved')
    config.merge_from_dict(Config.fromfile(tmp_path / 'moved/backbone.py').to_dict())
    assert config.model.backbone.init_cfg.checkpoint == str(tmp_path / 'moved/model.pth')
    backbone = DETECTORS.build(config.model.backbone)
    backbone.init_weights()
    for name, value in encoder.network.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value)
    # Loading does not depend on the scope that is in force.
    assert type(mm_sop.load(tmp_path / 'moved').network) is type(encoder.network)


def test_card_shows_the_figures_of_the_run(samples, tmp_path):
    score = dict(accuracy=0.25, standard_error=0.01)
    records = [
        dict(network=network, iter=iteration, epoch=None, seconds=1, scores=dict(test_class_k20=score))
        for network, iteration in [('raw_pixels', None), ('teacher', 4), ('teacher', 8)]
    ]
    (tmp_path / 'knn.json').write_text(json.dumps(records))
    encoder = make_encoder('small')
    encoder.specification.origin = dict(iter=8, method='SOP', data='some/folder')
    export(encoder, 'safetensors', tmp_path / 'out', samples, run=tmp_path)
    card = re.sub(' +', ' ', (tmp_path / 'out/README.md').read_text())
    assert '| teacher | 8 | 25.0' in card
    assert '| teacher | 4 |' not in card
    assert '| raw 16 x 16 pixels |' in card
    assert '| data | some/folder |' in card
    assert '`ResNet_CIFAR` (depth 18) for safetensors, the teacher of SOP.' in card


def test_methods_without_a_teacher(samples, tmp_path):
    mlp = dict(type='MLPNeck', in_channels=32, hid_channels=8, out_channels=8, num_layers=2)
    head = dict(type='LatentPredictHead', predictor=dict(mlp, in_channels=8), loss=dict(type='CosineSimilarityLoss'))
    model = dict(type='SimSiam', backbone=NETWORKS['vit'], neck=mlp, head=head)
    state = shuffle(MODELS.build(copy.deepcopy(model))).state_dict()
    meta = dict(cfg=Config(dict(model=model)).pretty_text, iter=8)
    torch.save(dict(state_dict=state, meta=meta), tmp_path / 'w.pth')
    scores = dict(test_class_k20=dict(accuracy=0.25, standard_error=0.01))
    record = dict(network='backbone', iter=8, epoch=None, seconds=1, scores=scores)
    (tmp_path / 'knn.json').write_text(json.dumps([record]))
    encoder = mm_sop.load(tmp_path / 'w.pth')
    for target in ('mmpretrain', 'timm', 'huggingface'):
        assert max(export(encoder, target, tmp_path / target, samples, tmp_path).values()) <= TOLERANCE
        card = re.sub(' +', ' ', (tmp_path / target / 'README.md').read_text())
        assert 'the backbone of SimSiam' in card and '| backbone | 8 | 25.0' in card
        assert 'teacher' not in card
        loaded = mm_sop.load(tmp_path / target)
        assert loaded.specification.network == 'backbone'
        torch.testing.assert_close(loaded(samples)[0], encoder(samples)[0])


def test_card_shows_evaluations_of_these_weights(samples, tmp_path):
    results = EvaluationResults(tmp_path / 'evaluation')
    for prefix, value in (('teacher.backbone.', 0.5), ('backbone.', 0.4)):
        encoder = dict(checkpoint_sha256='abc', prefix=prefix)
        base = dict(protocol='knn', key=prefix, checkpoint=f'{prefix}pth', card=dict(encoder=encoder))
        scores = dict(test_class_k20=Score(value, 0.01), test_class_k10=Score(0.1))
        results.add(finished_record(base, ProtocolResult(scores), 1.0))
    encoder = make_encoder('small')
    encoder.specification.origin = dict(checkpoint_sha256='abc', prefix='teacher.backbone.')
    export(encoder, 'safetensors', tmp_path / 'out', samples, run=tmp_path)
    card = re.sub(' +', ' ', (tmp_path / 'out/README.md').read_text())
    assert '| knn | test class k20 | 50.0 ± 1.0 |' in card
    assert '40.0' not in card and 'k10' not in card
    for folder, value in (('/data/mine', 0.3), ('/data/theirs', 0.2)):
        encoder = dict(checkpoint_sha256='abc', prefix='')
        base = dict(
            protocol='knn', key=folder, checkpoint='two.pth', setup=dict(data=folder), card=dict(encoder=encoder)
        )
        results.add(finished_record(base, ProtocolResult(dict(test_class_k20=Score(value, 0.01))), 1.0))
    encoder = make_encoder('small')
    encoder.specification.origin = dict(checkpoint_sha256='abc', prefix='')
    export(encoder, 'safetensors', tmp_path / 'two', samples, run=tmp_path)
    card = re.sub(' +', ' ', (tmp_path / 'two/README.md').read_text())
    assert '| protocol | data | score | value |' in card and '/data/' not in card
    assert '| knn | mine | test class k20 | 30.0 ± 1.0 |' in card and '| knn | theirs |' in card


def test_tool_exports_a_checkpoint(repository, images, tmp_path):
    model = dict(type='SOP', backbone=NETWORKS['vit'])
    network = MODELS.build(copy.deepcopy(NETWORKS['vit']))
    state = {f'teacher.backbone.{name}': value for name, value in network.state_dict().items() if name != 'mask_token'}
    state |= {f'backbone.{name}': value + 1 for name, value in network.state_dict().items()}
    torch.save(dict(state_dict=state, meta=dict(cfg=Config(dict(model=model)).pretty_text, iter=3)), tmp_path / 'w.pth')
    command = [sys.executable, repository / 'tools/export.py', tmp_path / 'w.pth', '--data', images, '--to']
    done = subprocess.run([*command, 'timm', 'safetensors'], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'timm: ' in done.stdout
    assert 'largest differences on 6 images' in done.stdout
    encoder = mm_sop.load(tmp_path / 'export/timm')
    assert torch.equal(encoder.network.pos_embed, network.pos_embed)
    assert encoder.specification.origin['method'] == 'SOP'
    with pytest.raises(WeightsError, match='holds the teacher: export the checkpoint again with `--which student`'):
        mm_sop.load(tmp_path / 'export/timm', 'student')


def test_programs_do_not_tell_where_they_were_made(samples, tmp_path):
    for target in ('torchscript', 'onnx'):
        export(make_encoder('windowed'), target, tmp_path / target, samples)
    with ZipFile(tmp_path / 'torchscript/model.pt') as program:
        content = b''.join(map(program.read, program.namelist()))
    for text in (content, (tmp_path / 'onnx/model.onnx').read_bytes()):
        assert b'site-packages' not in text and str(Path(mm_sop.__file__).parent).encode() not in text


def test_tool_checks_all_targets_first(repository, images, tmp_path, monkeypatch):
    torch.save(dict(state_dict={}, meta={}), tmp_path / 'w.pth')
    monkeypatch.setattr(mm_sop, 'load', lambda *_: make_encoder('vit_scaled'))
    arguments = ['export.py', str(tmp_path / 'w.pth'), '--data', str(images), '--to', 'timm', 'torchvision']
    monkeypatch.setattr(sys, 'argv', arguments)
    with pytest.raises(SystemExit, match='export.py: torchvision cannot express LayerScale'):
        runpy.run_path(str(repository / 'tools/export.py'), run_name='__main__')
    assert not (tmp_path / 'export').exists()
    monkeypatch.setattr(sys, 'argv', [*arguments, '--num-images', '0'])
    with pytest.raises(SystemExit, match='export.py: 0 images: at least one is needed'):
        runpy.run_path(str(repository / 'tools/export.py'), run_name='__main__')


def test_images_are_asked_for(tmp_path):
    with pytest.raises(ExportError, match='Give a folder with --data'):
        sample_images(tmp_path / 'missing')


def test_folders_that_are_no_exports_are_refused(tmp_path):
    with pytest.raises(WeightsError, match='expected a folder written by tools/export.py'):
        mm_sop.load(tmp_path)


def test_images_come_in_many_forms():
    encoder = make_encoder('small')
    image = Image.new('RGB', (40, 32), (200, 10, 60))
    expected = encoder(image)
    for images in ([image], torch.tensor([200, 10, 60], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32)):
        for ours, theirs in zip(expected, encoder(images), strict=True):
            torch.testing.assert_close(theirs, ours)
    normalized = encoder.prepare(torch.ones(2, 3, 8, 8))
    torch.testing.assert_close(normalized[:, :, 0, 0], torch.tensor([[135 / 60, 145 / 55, 155 / 50]]).expand(2, 3))
    with pytest.raises(ValueError, match=r'expected images \(B, 3, H, W\), got \(2, 4, 8, 8\)'):
        encoder(torch.zeros(2, 4, 8, 8))
    assert isinstance(encoder.network, nn.Module)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
