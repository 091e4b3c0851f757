"""Fine-tuning of a classifier through the launcher of pretraining, in two processes."""

import math

import pytest
import torch
from testing.distributed import run_distributed
from testing.sample_images import write_splits

from mm_sop.engine.launch import launch
from mm_sop.utils.config import load_config


@pytest.fixture(scope='module')
def classes(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp('classes'), 4)


def train_in_process(rank, world_size, repository, classes, work_dir):
    config = load_config(repository / 'configs/finetune/finetune_vitt_composites.py')
    for loader, part in ((config.train_dataloader, 'bank'), (config.val_dataloader, 'test')):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.get('dataset', loader.dataset).data_root = str(classes / part)
    config.train_dataloader.pop('worker_init_fn')
    config.train_cfg.update(max_epochs=None, max_iters=3, val_interval=2)
    config.val_evaluator.topk = (1,)
    config.log_level = 'ERROR'
    runner = launch(config, work_dir, pretrained='none', launcher='pytorch')
    weights = {name: value.detach().clone() for name, value in runner.model.module.named_parameters()}
    scalars = {name: value._log_history for name, value in runner.message_hub.log_scalars.items()}
    return weights, runner.iter, len(runner.train_dataloader), scalars


def test_a_transformer_in_two_processes(repository, classes, work_dir):
    ranks = run_distributed(train_in_process, repository, classes, str(work_dir))
    (first, iterations, batches, scalars), (second, *_) = ranks
    assert (iterations, batches) == (3, 2)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert len(scalars['train/loss']) == 3 and all(map(math.isfinite, scalars['train/loss']))
    # All 8 images of both processes are counted.
    assert scalars['val/accuracy/top1'][-1] * 8 % 100 == pytest.approx(0)
