"""Weights are read without running code, and loaded completely or not at all."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import PretrainedInit
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from mm_sop.encoders import PretrainedBackbone, checkpoint_loader
from mm_sop.encoders.checkpoint import (
    WeightsError,
    describe_mismatch,
    find_prefix,
    load_complete,
    read_checkpoint,
    read_state_dict,
    trust_checkpoints,
)


class Malicious:
    def __reduce__(self):
        return (print, ('code was run',))


@pytest.mark.parametrize('wrap', [dict, lambda s: dict(state_dict=s, meta=1), lambda s: dict(model=s, epoch=3)])
@pytest.mark.parametrize('zipped', [True, False])
def test_reads_many_forms(tmp_path, wrap, zipped):
    state = nn.Linear(3, 2).state_dict()
    torch.save(wrap(dict(state)), tmp_path / 'w.pth', _use_new_zipfile_serialization=zipped)
    found = read_state_dict(tmp_path / 'w.pth')
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_reads_safetensors(tmp_path):
    from safetensors.torch import save_file

    state = nn.Linear(3, 2).state_dict()
    save_file(state, tmp_path / 'w.safetensors')
    assert torch.equal(read_state_dict(tmp_path / 'w.safetensors')['weight'], state['weight'])
    whole = (tmp_path / 'w.safetensors').read_bytes()
    for damaged in (b'broken', whole[:-3], whole + b'more', b'\xff' + whole[1:], b''):
        (tmp_path / 'w.safetensors').write_bytes(damaged)
        with pytest.raises(WeightsError, match='cannot be read'):
            read_state_dict(tmp_path / 'w.safetensors')


def test_refuses_what_it_cannot_trust(tmp_path, capsys):
    path = tmp_path / 'w.pth'
    with pytest.raises(WeightsError, match='no checkpoint'):
        read_state_dict(path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(WeightsError, match='w.pth'):
        read_state_dict(path)
    torch.save(dict(state_dict=dict(weight=torch.ones(1)), args=Malicious()), path)
    with pytest.raises(WeightsError, match='would run code') as error:
        read_state_dict(path)
    assert 'the Python object print, which' in str(error.value)
    assert str(error.value).isprintable() and 'weights_only' not in str(error.value)
    assert 'code was run' not in capsys.readouterr().out
    torch.save(dict(epoch=3), path)
    with pytest.raises(WeightsError, match='holds no weights'):
        read_state_dict(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('data', 'no tensors')
    with pytest.raises(WeightsError, match='cannot be read'):
        read_state_dict(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'it is empty'),
        (b'PK\x03\x04 and no more', 'its end is missing, there are 16 bytes only'),
        (b'\n<!DOCTYPE html><html></html>', 'it is a web page'),
        (b'version https://git-lfs.github.com/spec/v1', 'pointer of Git LFS'),
        (b'epoch 3', 'it is damaged or cut off, or torch.save has not written it'),
        (b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.', 'it is damaged or cut off'),
    ],
)
def test_what_is_wrong_with_a_file(content, message, tmp_path):
    (tmp_path / 'w.pth').write_bytes(content)
    with pytest.raises(WeightsError, match=f'w.pth cannot be read: {message}|w.pth cannot be read: it is a {message}'):
        read_state_dict(tmp_path / 'w.pth')


class Attribute:
    """Reaches any object through attributes, such as the module of a built-in function."""

    def __init__(self, owner, name):
        self.found = (owner, name)

    def __reduce__(self):
        return getattr, self.found


def test_attributes_cannot_be_followed_into_other_objects(tmp_path):
    for found in ((getattr, '__self__'), (HistoryBuffer, '__init__'), (HistoryBuffer, '_set_default_statistics')):
        torch.save(dict(weight=torch.ones(1), log=Attribute(*found)), tmp_path / 'w.pth')
        with pytest.raises(WeightsError, match='w.pth cannot be read'):
            read_checkpoint(tmp_path / 'w.pth')
    # As old logs of MMEngine have them.
    torch.save(dict(weight=torch.ones(1), log=Attribute(HistoryBuffer, 'mean')), tmp_path / 'w.pth')
    assert read_checkpoint(tmp_path / 'w.pth').content['log'] is HistoryBuffer.mean


def load_into(module, path):
    load_checkpoint(module, str(path))


def initialize_from(module, path):
    PretrainedInit(str(path))(module)


def start_backbone(module, path):
    PretrainedBackbone(str(path))(module)


@pytest.mark.parametrize('way', [load_into, initialize_from, start_backbone])
def test_every_way_to_load_refuses_code_and_damage(way, tmp_path, capsys):
    module, path = nn.Linear(3, 2), tmp_path / 'iter_8.pth'
    state = {name: value + 1 for name, value in module.state_dict().items()}
    torch.save(state, tmp_path / 'iter_4.pth')
    torch.save(dict(state_dict=state, args=Malicious()), path)
    with pytest.raises(WeightsError, match='would run code. If you trust where it comes from, .*--trust') as error:
        way(module, path)
    output = capsys.readouterr()
    assert 'code was run' not in output.out and 'weights_only' not in str(error.value) + output.out + output.err
    with trust_checkpoints():
        way(module, path)
    assert capsys.readouterr().out.count('code was run') == 1 and torch.equal(module.weight, state['weight'])
    with pytest.raises(WeightsError, match='would run code'), trust_checkpoints(False):
        way(module, path)

    torch.save(state, path)
    content = bytearray(path.read_bytes())
    start = content.index(state['weight'].numpy().tobytes())
    content[start + 2] ^= 1
    path.write_bytes(content)
    message = r'iter_8.pth cannot be read: it is damaged, the checksum of its part data/0 .*newest intact .*iter_4.pth'
    with pytest.raises(WeightsError, match=message):
        way(module, path)
    path.unlink()
    with pytest.raises(WeightsError, match='no checkpoint .*iter_8.pth'):
        way(module, path)


@pytest.mark.parametrize(
    'name',
    [
        'https://example.org/w.pth',
        'torchvision://resnet18',
        'open-mmlab://vgg16_caffe',
        'mmcls://resnet50',
        's3://bucket/w.pth',
        'petrel://bucket/w.pth',
    ],
)
def test_checkpoints_from_elsewhere_cannot_run_code(name, tmp_path, monkeypatch, capsys):
    content = io.BytesIO()
    torch.save(dict(state_dict=dict(weight=torch.ones(1)), args=Malicious()), content)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(
        torch.hub, 'download_url_to_file', lambda address, path, *_, **__: Path(path).write_bytes(content.getvalue())
    )
    monkeypatch.setattr(checkpoint_loader, 'get', lambda *_, **__: content.getvalue())
    with pytest.raises(WeightsError, match='would run code'):
        load_checkpoint(nn.Linear(1, 1), name)
    assert 'code was run' not in capsys.readouterr().out
    torch.save(dict(state_dict={'backbone.weight': torch.ones(1)}), content := io.BytesIO())
    for file in (tmp_path / 'checkpoints').glob('*'):
        file.unlink()
    assert 'state_dict' in CheckpointLoader.load_checkpoint(name)


def test_files_without_checksums_are_read(tmp_path):
    compute = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(weight=torch.ones(300)), tmp_path / 'w.pth')
    finally:
        torch.serialization.set_crc32_options(compute)
    assert read_state_dict(tmp_path / 'w.pth')['weight'].sum() == 300


def test_truncated_old_files_are_damaged(tmp_path):
    torch.save(dict(weight=torch.ones(300), step=3), tmp_path / 'w.pth', _use_new_zipfile_serialization=False)
    whole = (tmp_path / 'w.pth').read_bytes()
    for length in (10, 100, len(whole) // 2, len(whole) - 10):
        (tmp_path / 'w.pth').write_bytes(whole[:length])
        with pytest.raises(WeightsError, match='it is damaged or cut off'):
            read_state_dict(tmp_path / 'w.pth')


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(WeightsError, match='is a folder: give a file with weights, there is none in it'):
        read_state_dict(tmp_path)
    for name in ('config.py', 'model.pth', 'other.safetensors'):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match='give a file with weights, model.pth or other.safetensors$'):
        read_state_dict(tmp_path)


def test_partial_loads_are_refused_with_a_table():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    del state['0.bias']
    state.update({'2.weight': torch.ones(4), '1.weight': torch.ones(5)})
    with pytest.raises(WeightsError) as error:
        load_complete(module, state, 'w.pth')
    assert str(error.value).splitlines() == [
        'w.pth does not fit Sequential:',
        '  missing    0.bias  (3,)',
        '  unexpected 2.weight  (4,)',
        '  shape      1.weight  (5,), expected (3,)',
    ]
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


def test_counters_and_ignored_names_may_differ():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = {name: value + 1 for name, value in module.state_dict().items() if 'num_batches' not in name}
    load_complete(module, dict(state, **{'fc.weight': torch.ones(1)}), 'w.pth', ignored=('fc.',))
    assert torch.equal(module[0].weight, state['0.weight'])
    load_complete(module, {'0.weight': torch.zeros(3, 2), '0.bias': torch.zeros(3)}, 'w.pth', ignored=('1.',))
    assert (module[0].weight == 0).all()


def test_long_tables_are_cut():
    module = nn.Sequential(*[nn.Linear(1, 1) for _ in range(20)])
    with pytest.raises(WeightsError) as error:
        load_complete(module, {}, 'w.pth')
    assert len(str(error.value).splitlines()) == 14
    assert 'missing    ... 40 in all' in str(error.value)
    assert len(describe_mismatch(module.state_dict(), {})) == 40


def test_prefixes():
    names = ('conv1.weight', 'layer.conv1.weight')
    state = {f'{prefix}{name}': torch.ones(1) for prefix in ('a.', 'b.') for name in names}
    assert find_prefix(state, names, ('b.', 'a.'), 'w') == 'b.'
    assert find_prefix(dict.fromkeys(names, 0), names, (), 'w') == ''
    with pytest.raises(WeightsError, match=r"choose one of the prefixes \['a.', 'b.'\]"):
        find_prefix(state, names, (), 'w')
    with pytest.raises(WeightsError, match=r'1 of 2 tensors are missing(?s:.*)c.layer.conv1.weight'):
        find_prefix({'c.conv1.weight': 0}, names, (), 'w')
    damaged = {name: value for name, value in state.items() if name != 'a.conv1.weight'}
    with pytest.raises(WeightsError, match=r'as a whole, 1 of 2 tensors are missing(?s:.*)a.conv1.weight'):
        find_prefix(damaged, names, ('a.', 'b.'), 'w')
    with pytest.raises(WeightsError, match='2 of 2 tensors are missing(?s:.*)names begin with x'):
        find_prefix({'x.y': 0}, names, (), 'w')


def test_the_closest_prefix_is_compared_completely():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = {f'backbone.{name}': value for name, value in module.state_dict().items()}
    del state['backbone.1.bias']
    state.update(
        {'backbone.1.weight': torch.ones(5), 'backbone.fc.weight': torch.ones(4), 'neck.weight': torch.ones(1)}
    )
    with pytest.raises(WeightsError) as error:
        find_prefix(state, module.state_dict(), ('teacher.backbone.', 'backbone.', ''), 'w.pth')
    assert str(error.value).splitlines() == [
        'w.pth does not hold this network as a whole, 1 of 6 tensors are missing:',
        '  missing    backbone.1.bias  (3,)',
        '  unexpected backbone.fc.weight  (4,)',
        '  shape      backbone.1.weight  (5,), expected (3,)',
        'Its names begin with backbone, neck',
    ]
    with pytest.raises(WeightsError, match=r'missing +backbone.1.bias *\n.*unexpected +backbone.fc.weight *\n'):
        find_prefix(state, list(module.state_dict()), ('backbone.',), 'w.pth')
    # Another network altogether: the table is about the beginning that is there, without what does not matter.
    with pytest.raises(
        WeightsError, match=r'missing +backbone.conv.weight *\n +unexpected +backbone.0.weight'
    ) as error:
        find_prefix(state, ['conv.weight'], ('teacher.backbone.', 'backbone.', ''), 'w.pth', ignored=('fc.',))
    assert 'fc.weight' not in str(error.value)
