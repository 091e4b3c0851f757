"""Training all of a pretrained network with labels, through MMPretrain's classifier and MMEngine's Runner."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

from mmengine.dataset import BaseDataset
from mmengine.device import is_cuda_available
from mmengine.dist import get_world_size
from mmengine.model import BaseModule
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier
from torch import nn

from mm_sop.datasets.seeded_dataset import SeededDataset
from mm_sop.engine.utils import share_buffers, unwrap_model
from mm_sop.evaluation.encoders import FrozenEncoder
from mm_sop.models.selfsup.teacher_student import remove_mask_token


@dataclass
class FinetuneSettings:
    """Recipe of a fine-tuning.

    Attributes:
        epochs: Passes over the pictures.
        min_iterations: Steps at least; few pictures are seen more often.
        batch_size: Pictures in a batch of all processes; fewer if there are fewer.
        learning_rate: Rate of AdamW for a batch of 256, after the warm-up; it ends at 0 after a cosine.
        layer_decay: Factor of the rate from each layer to the one before; 1 for equal rates.
        weight_decay: Weight decay of all but biases and norms.
        warmup: Share of the steps in which the rate rises.
        mixup: Parameter alpha of mixup; 0 for none.
        cutmix: Parameter alpha of CutMix; 0 for none.
        label_smoothing: Share of the target that goes to all classes.
    """

    epochs: int = 10
    min_iterations: int = 200
    batch_size: int = 64
    learning_rate: float = 4e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    label_smoothing: float = 0.1


def build_classifier(encoder: FrozenEncoder, dim: int, num_classes: int, settings: FinetuneSettings) -> ImageClassifier:
    """Put a new linear head on a copy of a network.

    Args:
        encoder: The network.
        dim: Width of its global representation.
        num_classes: Number of classes.
        settings: Recipe.
    """
    network = copy.deepcopy(encoder.network)
    for module in network.modules():
        if hasattr(module, 'frozen_stages'):
            # `train` would freeze again what pretraining had frozen.
            module.frozen_stages = -1
    network.requires_grad_(True)
    remove_mask_token(network)
    if isinstance(network, BaseModule):
        # The runner would initialise it anew.
        network._is_init = True
    head = dict(
        type='LinearClsHead',
        num_classes=num_classes,
        in_channels=dim,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=settings.label_smoothing, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.01),
    )
    mixing = dict(Mixup=settings.mixup, CutMix=settings.cutmix)
    augments = [dict(type=name, alpha=alpha) for name, alpha in mixing.items() if alpha]
    return ImageClassifier(
        backbone=network,
        neck=dict(type='GlobalNeck'),
        head=head,
        train_cfg=dict(augments=augments) if augments else None,
        data_preprocessor=dict(
            num_classes=num_classes,
            to_rgb=encoder.data_preprocessor._channel_conversion,
            **encoder.identity['normalization'],
        ),
    )


def finetune(
    classifier: ImageClassifier,
    dataset: BaseDataset,
    settings: FinetuneSettings,
    work_dir: Path,
    seed: int = 0,
    num_workers: int = 0,
) -> nn.Module:
    """Train a classifier; an interrupted training in the same folder goes on.

    Args:
        classifier: The classifier.
        dataset: Labelled pictures in random views.
        settings: Recipe.
        work_dir: Folder of log and checkpoints; its name is that of the run.
        seed: Seed of order, views and mixing.
        num_workers: Worker processes that load pictures.

    Returns:
        The trained classifier.

    Raises:
        ValueError: There are fewer images than processes.
    """
    world_size = get_world_size()
    if min(settings.batch_size, len(dataset)) < world_size:
        raise ValueError(
            f'batches of {min(settings.batch_size, len(dataset))} images cannot be shared by {world_size} processes: '
            'start fewer processes, or give more images or a larger batch_size'
        )
    batch_size = min(settings.batch_size, len(dataset)) // world_size
    steps = len(dataset) // (batch_size * world_size)
    epochs = max(settings.epochs, math.ceil(settings.min_iterations / steps))
    runner = Runner(
        model=classifier,
        work_dir=str(work_dir),
        train_dataloader=_dataloader(SeededDataset(dataset, seed), batch_size, num_workers),
        train_cfg=dict(type='PretrainLoop', max_epochs=epochs),
        optim_wrapper=_optim_wrapper(settings, settings.learning_rate * batch_size * world_size / 256),
        param_scheduler=_schedule(settings, epochs * steps),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=max(1, epochs * steps // 10), log_metric_by_epoch=False),
            checkpoint=dict(type='PretrainCheckpointHook', epochs=max(1, epochs // 5), max_keep_ckpts=1),
        ),
        resume=True,
        launcher='pytorch' if world_size > 1 else 'none',
        randomness=dict(seed=seed),
        default_scope='mmpretrain',
        experiment_name=work_dir.name,
        cfg=dict(model_wrapper_cfg=_wrapper()),
    )
    model = unwrap_model(runner.train())
    share_buffers(model)
    return model


def _dataloader(dataset: SeededDataset, batch_size: int, num_workers: int) -> dict:
    return dict(
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        drop_last=True,
        collate_fn=dict(type='default_collate'),
        sampler=dict(type='ResumableSampler', shuffle=True),
        worker_init_fn=dict(type='pretrain_worker_init'),
        dataset=dataset,
    )


def _optim_wrapper(settings: FinetuneSettings, learning_rate: float) -> dict:
    wrapper = dict(optimizer=dict(type='AdamW', lr=learning_rate, weight_decay=settings.weight_decay))
    rules = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    if settings.layer_decay == 1:
        return dict(wrapper, paramwise_cfg=rules)
    rules = dict(rules, flat_decay_mult=0.0, layer_decay_rate=settings.layer_decay)
    return dict(wrapper, constructor='LayerDecayOptimWrapperConstructor', paramwise_cfg=rules)


def _schedule(settings: FinetuneSettings, total: int) -> list[dict]:
    warmup = round(settings.warmup * total)
    # MMEngine's LinearLR over a single step stays where it begins.
    warmup = warmup if warmup > 1 else 0
    rising = dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=warmup)
    falling = dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup, end=total, T_max=total - warmup)
    return [rising, falling] if warmup else [falling]


def _wrapper() -> dict:
    """Settings of DistributedDataParallel, which MMEngine gives a CUDA device unless told otherwise."""
    wrapper = dict(type='MMDistributedDataParallel', broadcast_buffers=False)
    return wrapper if is_cuda_available() else dict(wrapper, device_ids=None)
