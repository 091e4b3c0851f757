"""A checkpoint is read once on its way to an encoder or to a score."""

import argparse
import builtins
import hashlib
import importlib
import io
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

import mm_sop
from mm_sop.encoders.checkpoint import read_checkpoint
from mm_sop.encoders.encoder import build_encoder
from mm_sop.encoders.projector import load_projector

RESNET = dict(type='ResNet', depth=18, stem_channels=4, base_channels=4)
NECK = dict(type='NonLinearNeck', in_channels=32, hid_channels=8, out_channels=4, num_layers=2, with_avg_pool=True)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    parts = dict(backbone=MODELS.build(RESNET), neck=MODELS.build(NECK))
    state = {f'{part}.{name}': value for part, module in parts.items() for name, value in module.state_dict().items()}
    model = dict(type='SimSiam', backbone=RESNET, neck=NECK)
    torch.save(dict(state_dict=state, meta=dict(cfg=Config(dict(model=model)).pretty_text)), tmp_path / 'w.pth')
    return tmp_path / 'w.pth'


@pytest.fixture
def uses(checkpoint, monkeypatch):
    """Counts how often the file is opened, hashed and unpickled."""
    counts = Counter()
    open_file, load, sha256 = builtins.open, torch.load, hashlib.sha256

    def count_open(file, *args, **kwargs):
        counts['opened'] += not isinstance(file, int) and Path(file) == checkpoint
        return open_file(file, *args, **kwargs)

    def count_load(*args, **kwargs):
        counts['loaded'] += 1
        return load(*args, **kwargs)

    def count_hash(data=b'', **kwargs):
        counts['hashed'] += len(data) >= checkpoint.stat().st_size
        return sha256(data, **kwargs)

    for module in (builtins, io):
        monkeypatch.setattr(module, 'open', count_open)
    monkeypatch.setattr(torch, 'load', count_load)
    monkeypatch.setattr(hashlib, 'sha256', count_hash)
    return counts


ONCE = dict(opened=1, loaded=1, hashed=1)


def test_load_reads_the_file_once(checkpoint, uses):
    encoder = mm_sop.load(checkpoint)
    assert uses == ONCE
    expected = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert encoder.specification.origin['checkpoint_sha256'] == encoder.identity['checkpoint_sha256'] == expected


def test_evaluation_reads_the_file_once(checkpoint, uses, tmp_path):
    """Encoder, projector and hash, as tools/evaluate.py builds them."""
    config = Config(dict(model=dict(type='SimSiam', backbone=RESNET, neck=NECK)))
    encoder = dict(encoder=None, network='teacher', prefix=None, crop_size=32, resize_edge=None)
    settings = dict(interpolation='bicubic', dtype='float32', batch_size=4, num_workers=0, seed=0, data=tmp_path)
    args = argparse.Namespace(checkpoint=checkpoint, **encoder, **settings)
    context = importlib.import_module('mm_sop.apps.cli.evaluate').build_context(args, config, tmp_path)
    assert context.projector is not None
    assert uses == ONCE


def test_a_read_checkpoint_is_passed_on(checkpoint, uses):
    config = Config(dict(model=dict(backbone=RESNET, neck=NECK)))
    content = read_checkpoint(checkpoint)
    assert read_checkpoint(content) is content
    encoder = build_encoder(config, content)
    assert load_projector(config, content, encoder.identity['prefix'])
    assert uses == ONCE


def test_checksums_are_compared_in_the_same_pass(checkpoint, uses, monkeypatch):
    """Nor does anything else read the file: tensors stay when it is gone."""
    monkeypatch.setattr(zipfile.ZipFile, 'open', None)
    state = read_checkpoint(checkpoint).state_dict()
    checkpoint.write_bytes(b'')
    assert all(torch.isfinite(value).all() for value in state.values())
