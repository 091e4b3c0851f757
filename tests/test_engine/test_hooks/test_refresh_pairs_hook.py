"""Semantic pairs mined again with the network in training."""

import shutil

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from testing.distributed import run_distributed
from testing.pair_training import make_config
from testing.toy_training import differences, state_of

from mm_sop.datasets.seeded import SampleKey
from mm_sop.datasets.semantic_pairs import PairManifest
from mm_sop.engine.launch import launch

MODEL = dict(type='SemanticSimSiam')


def refreshing_config(work_dir, images, manifest=None, mode='replace', **hook):
    """12 images in 3 batches an epoch, with new pairs from the second epoch on."""
    config = make_config(work_dir, images, MODEL, manifest='none', mode=mode, max_iters=9)
    config.train_dataloader.dataset.dataset.manifest = manifest
    settings = dict(every=1, begin=1, lower=0.0, upper=1.0, max_per_anchor=1)
    config.custom_hooks = [*config.get('custom_hooks', []), dict(type='RefreshPairsHook', **{**settings, **hook})]
    return config


def train(*args, **options):
    runner = Runner.from_cfg(refreshing_config(*args, **options))
    runner.train()
    return runner


def test_new_pairs_are_used_from_their_epoch_on(tmp_path, images):
    runner = train(tmp_path, images, every=2)
    assert [path.name for path in sorted(tmp_path.glob('pairs/*.json'))] == ['epoch_1.json']
    manifest = PairManifest.load(tmp_path / 'pairs/epoch_1.json')
    assert len(manifest.pairs) > 0
    dataset = runner.train_dataloader.dataset
    semantic = []
    for epoch in range(3):
        samples = [dataset[SampleKey(epoch, index)]['data_samples'] for index in range(len(dataset))]
        semantic.append({sample.image_ids for sample in samples if sample.is_semantic})
    assert semantic[0] == set()
    known = {tuple(pair) for pair in np.concatenate([manifest.pairs, manifest.pairs[:, ::-1]]).tolist()}
    assert semantic[1] and semantic[1] | semantic[2] <= known


def test_a_run_resumed_within_an_epoch_keeps_its_pairs(tmp_path, images):
    straight = train(tmp_path / 'straight', images)
    shutil.copytree(tmp_path / 'straight', tmp_path / 'resumed')
    config = refreshing_config(tmp_path / 'resumed', images)
    config.load_from, config.resume = str(tmp_path / 'straight/iter_4.pth'), True
    # A later epoch's pairs, of a run that got further, must not be taken for those of this one.
    stale = tmp_path / 'resumed/pairs/epoch_2.json'
    stale.write_text('{}')
    resumed = Runner.from_cfg(config)
    resumed.train()
    assert differences(state_of(resumed), state_of(straight)) == []
    assert stale.read_text() == (tmp_path / 'straight/pairs/epoch_2.json').read_text()


@HOOKS.register_module()
class OwnStatisticsHook(Hook):
    """Without SyncBN every process has statistics of its own."""

    def before_train(self, runner):
        for buffer in runner.model.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape), alpha=3 * runner.rank)


def pairs_of(rank, world_size, work_dir, images):
    config = refreshing_config(work_dir, images, begin=0, every=10)
    config.train_cfg.max_iters = 1
    config.train_dataloader.batch_size = 4 // world_size
    for network in (config.model.neck, config.model.head.predictor):
        network.norm_cfg = dict(type='BN1d')
    config.custom_hooks.append(dict(type='OwnStatisticsHook'))
    launch(config, work_dir, launcher='pytorch' if world_size > 1 else 'none')
    return PairManifest.load(f'{work_dir}/pairs/epoch_0.json')


def test_two_processes_find_the_pairs_of_one(tmp_path, images):
    alone = pairs_of(0, 1, str(tmp_path / 'one'), images)
    for shared in run_distributed(pairs_of, str(tmp_path / 'two'), images):
        assert np.array_equal(shared.pairs, alone.pairs)


def test_refuses_what_cannot_work(tmp_path, images):
    with pytest.raises(ValueError, match="not in 'concat'"):
        train(tmp_path, images, mode='concat')
    config = make_config(tmp_path, images, MODEL)
    config.custom_hooks = [dict(type='RefreshPairsHook')]
    with pytest.raises(ValueError, match='needs a SemanticPairDataset'):
        Runner.from_cfg(config).train()
    with pytest.raises(ValueError, match='every >= 1'):
        train(tmp_path, images, every=0)
