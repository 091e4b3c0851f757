"""A student and its teacher on 30 vectors: all that the engine needs, in milliseconds."""

import copy
import os
import signal
import time
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmpretrain.registry import DATASETS, HOOKS, MODELS
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils.data import Dataset

from mm_sop.engine import PretrainRunner
from mm_sop.engine.restarts import restart_count
from mm_sop.functional import update_ema


@DATASETS.register_module()
class ToyVectors(Dataset):
    """Vectors with noise from torch's global generator, as augmentations have."""

    metainfo = dict(dataset_type='toy')

    def __init__(self, size=30, noise=0.1, unreadable=(), name='/images/{}.jpg'):
        self.vectors = torch.randn(size, 8, generator=torch.Generator().manual_seed(0))
        self.noise = noise
        self.unreadable = set(unreadable)
        self.name = name
        self.loaded = []

    def __len__(self):
        return len(self.vectors)

    def __getitem__(self, index):
        self.loaded.append(index)
        if index in self.unreadable:
            from mm_sop.datasets.transforms.loading import UnreadableImageError

            raise UnreadableImageError(self.name.format(index), 'truncated')
        noise = self.noise * torch.randn(8) if self.noise else 0
        return dict(inputs=self.vectors[index] + noise, data_samples=DataSample())


@MODELS.register_module()
class ToyMethod(BaseModel):
    """Student that follows its own slow teacher, through dropout."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.backbone.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.dropout = nn.Dropout(dropout)
        self.teacher = nn.ModuleDict(dict(backbone=copy.deepcopy(self.backbone))).requires_grad_(False)
        self.temperatures, self.momenta = [], []

    def init_weights(self):
        super().init_weights()
        self.teacher['backbone'].load_state_dict(self.backbone.state_dict())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        student, teacher = inputs + self.backbone.token[0], inputs
        for layer, slow in zip(self.backbone.layers, self.teacher['backbone'].layers, strict=True):
            student, teacher = self.dropout(layer(student).relu()), slow(teacher).relu()
        return dict(loss_cls=(student.float() - teacher.float() - 1).square().mean(), agreement=student.mean())

    def update_teacher(self, momentum):
        self.momenta.append(momentum)
        names = dict(self.backbone.named_parameters())
        targets = dict(self.teacher['backbone'].named_parameters())
        update_ema(list(targets.values()), [names[name] for name in targets], momentum)

    def set_teacher_temperature(self, value):
        self.temperatures.append(value)


@HOOKS.register_module()
class SignalHook(Hook):
    """Sends a signal after an iteration of one rank: to this process, its launcher or the script that started that."""

    priority = 'VERY_HIGH'

    def __init__(self, name, iteration, rank=0, to_script=False, to_launcher=False, attempt=None):
        self.number, self.iteration, self.rank = signal.Signals[name], iteration, rank
        self.to_script, self.to_launcher, self.attempt = to_script, to_launcher, attempt

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 != self.iteration or runner.rank != self.rank:
            return
        if self.attempt not in (None, restart_count()):
            return
        launcher = os.getppid()
        os.kill(parent_of(launcher) if self.to_script else launcher if self.to_launcher else os.getpid(), self.number)
        if self.to_script:
            time.sleep(1)


@HOOKS.register_module()
class BusyHook(Hook):
    """Keeps the first attempt of one rank busy after an iteration, without communication."""

    def __init__(self, iteration, rank=0, seconds=200):
        self.iteration, self.rank, self.seconds = iteration, rank, seconds

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration and runner.rank == self.rank and restart_count() == 0:
            time.sleep(self.seconds)


@HOOKS.register_module()
class PauseHook(Hook):
    """Waits for a signal after an iteration of the first attempt, and tells by the file ``paused``."""

    def __init__(self, iteration, seconds=5):
        self.iteration, self.seconds = iteration, seconds

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration and restart_count() == 0:
            Path(runner.work_dir, 'paused').touch()
            time.sleep(self.seconds)


@HOOKS.register_module()
class StopHook(Hook):
    """Ends the process' run as a crash does, between two iterations."""

    priority = 'LOWEST'

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            raise KeyboardInterrupt


def parent_of(pid):
    return int(Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[1])


def toy_config(work_dir, **changes):
    """Config of a run of 3 epochs of 7 iterations (batch 4, two of 30 vectors left over), two accumulated."""
    cfg = Config(
        dict(
            custom_imports=dict(imports=['mm_sop', 'testing.toy_training'], allow_failed_imports=False),
            runner_type='PretrainRunner',
            default_scope='mmpretrain',
            work_dir=str(work_dir),
            model=dict(type='ToyMethod'),
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                drop_last=True,
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='ResumableSampler', seed=3),
                dataset=dict(type='SeededDataset', dataset=dict(type='ToyVectors')),
            ),
            train_cfg=dict(type='PretrainLoop', max_epochs=3),
            optim_wrapper=dict(
                type='PretrainOptimWrapper',
                constructor='PretrainOptimWrapperConstructor',
                optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.04),
                clip=dict(type='per_tensor', max_norm=3.0),
                accumulative_counts=2,
            ),
            param_scheduler=[dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True)],
            default_hooks=dict(
                runtime_info=dict(type='DeferredRuntimeInfoHook'),
                throughput=dict(type='ThroughputHook', interval=5),
                logger=dict(type='LoggerHook', interval=5),
                checkpoint=dict(type='PretrainCheckpointHook', interval=4, epochs=1, signal_interval=2),
                bad_images=dict(type='BadImageHook', interval=5),
            ),
            custom_hooks=[dict(type='TeacherHook', momentum=0.9), dict(type='TeacherTemperatureHook')],
            randomness=dict(seed=3, diff_rank_seed=True),
            visualizer=dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
            log_level='WARNING',
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


def train(work_dir, **changes):
    """Run to the end and return the runner."""
    runner = PretrainRunner.from_cfg(toy_config(work_dir, **changes))
    runner.train()
    return runner


def interrupt(work_dir, iteration, **changes):
    """Run until a crash after the iteration."""
    cfg = toy_config(work_dir, **changes)
    cfg.custom_hooks.append(dict(type='StopHook', iteration=iteration))
    try:
        PretrainRunner.from_cfg(cfg).train()
    except KeyboardInterrupt:
        return
    raise AssertionError(f'the run ended before iteration {iteration}')


def state_of(runner):
    """Everything that training has changed, as numbers: model, optimizer and random state."""
    model = runner.model.module if hasattr(runner.model, 'module') else runner.model
    optimizer = runner.optim_wrapper.optimizer.state_dict()['state']
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state.update(
        (f'optimizer.{index}.{key}', value) for index, item in optimizer.items() for key, value in item.items()
    )
    state['random'] = torch.get_rng_state()
    return state


def differences(first, second):
    """Names of entries that are not bit-identical."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(torch.as_tensor(first[name]), torch.as_tensor(second[name]))]
