"""Training of a small SOP on colored noise, in the real loop."""

import torch
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample

from mm_sop.engine import PretrainRunner
from testing.sop_models import sop_config
from testing.toy_training import toy_config


@DATASETS.register_module()
class MaskedNoise(torch.utils.data.Dataset):
    """Two global views with masks and two crops of an image of colored noise."""

    metainfo = dict(dataset_type='toy')

    def __len__(self):
        return 30

    def __getitem__(self, index):
        color = torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(index))
        views = [color + 0.5 * torch.randn(3, side, side) for side in (16, 16, 8, 8)]
        return dict(inputs=views, data_samples=DataSample(metainfo=dict(mask=(torch.rand(2, 4, 4) < 0.4).numpy())))


def train_sop(work_dir, drop_path=0.0, stop_at=None, launcher='none', batch_size=4, model=None, **changes):
    """3 epochs of 7 iterations, of a small SOP or another method."""
    cfg = toy_config(work_dir, launcher=launcher, **{'train_dataloader.batch_size': batch_size}, **changes)
    cfg.model = model or sop_config()
    cfg.model['backbone']['drop_path_rate'] = drop_path
    cfg.train_dataloader.dataset.dataset = dict(type='MaskedNoise')
    if stop_at:
        cfg.custom_hooks.append(dict(type='SignalHook', name='SIGTERM', iteration=stop_at))
    runner = PretrainRunner.from_cfg(cfg)
    runner.train()
    return runner
